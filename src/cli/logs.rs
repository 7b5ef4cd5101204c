//! `windlass logs`: a task's output as its manifest says it is.

use clap::Args;
use futures_util::StreamExt as _;

use super::args::{Named, log_stream};
use super::assembly::Piece;
use super::follow::{Interrupts, Outputs, Seen, Watch};
use super::status::Found;
use super::{Exit, Failed, Global, Output};
use crate::bus::Bus;
use crate::bus::read::{EventFilter, From};
use crate::task::EventKind;
use crate::task::event::Manifest;
use crate::task::log_chunk::LogStream;

/// `windlass logs`
#[derive(Debug, Clone, Args)]
pub struct LogsArgs {
    /// Which task.
    #[command(flatten)]
    pub task: Named,
    /// Follow the output until the task is over
    #[arg(short, long)]
    pub follow: bool,
    /// Only this stream, written to stdout: stdout, stderr or system
    #[arg(long, value_parser = log_stream)]
    pub stream: Option<LogStream>,
    /// The output of this attempt [default: the last]
    #[arg(long, conflicts_with = "follow")]
    pub attempt: Option<u32>,
}

/// Runs the verb.
pub(super) async fn run(global: &Global, args: &LogsArgs, output: &mut Output) -> Result<Exit, Failed> {
    let (bus, _) = global.connect().await?;
    let found = Found::find(&bus, &args.task).await?;
    let show = Show { only: args.stream, output };
    let shown = if args.follow { show.follow(&bus, args, &found).await } else { show.stored(&bus, args, &found).await };
    output.end_of_task()?;
    shown
}

struct Show<'a> {
    only: Option<LogStream>,
    output: &'a Output,
}

impl Show<'_> {
    /// What is there of one attempt.
    async fn stored(&self, bus: &Bus, args: &LogsArgs, found: &Found) -> Result<Exit, Failed> {
        let Some(attempt) = attempt(bus, args, found).await? else { return Ok(Exit::Done) };
        let mut outputs = Outputs::default();
        outputs.started(attempt.fence);
        let mut chunks = bus.log_chunks(&found.tenant, &args.task.id, false).await?;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk?;
            if chunk.fence == attempt.fence {
                for piece in outputs.push(chunk) {
                    self.piece(&piece)?;
                }
            }
        }
        verified(&outputs.differences(attempt.manifest.as_ref()))
    }

    /// All attempts as they come, until the task is over.
    async fn follow(&self, bus: &Bus, args: &LogsArgs, found: &Found) -> Result<Exit, Failed> {
        let mut interrupts = Interrupts::listen()?;
        let mut watch = Watch::open(bus, &found.tenant, &args.task.id).await?;
        loop {
            let seen = tokio::select! {
                seen = watch.next() => seen?,
                () = interrupts.next() => return Ok(Exit::Interrupted),
            };
            match seen {
                Some(Seen::Piece(piece)) => self.piece(&piece)?,
                Some(Seen::Event(read)) if read.head.event.event.is_terminal() => {
                    return verified(&watch.differences(read.head.event.logs.as_ref()));
                }
                Some(Seen::Event(read)) if read.head.event.event == EventKind::TaskStarted => {
                    self.output.notice(&super::render::detail(&read.head.event));
                }
                Some(Seen::Event(_)) => {}
                None => return Err(Failed::new(Exit::Unreachable, "the events ended before the task did")),
            }
        }
    }

    fn piece(&self, piece: &Piece) -> Result<(), Failed> {
        let stream = piece.chunk.stream;
        if self.only.is_some_and(|only| only != stream) {
            return Ok(());
        }
        if self.output.is_json() {
            self.output.json(&piece.chunk)?;
            return Ok(());
        }
        if piece.chunk.dropped_bytes > 0 {
            self.output.warn(&format!("{} bytes of {} were left out here (logs.cap)", piece.chunk.dropped_bytes, stream.as_str()));
        }
        // A stream that was asked for by name is data, whichever it is.
        self.output.of_task(&piece.bytes, self.only.is_none() && stream != LogStream::Stdout)?;
        Ok(())
    }
}

struct Attempt {
    fence: u64,
    manifest: Option<Manifest>,
}

/// The attempt that was asked for, else the one whose output counts; none when nothing has started.
async fn attempt(bus: &Bus, args: &LogsArgs, found: &Found) -> Result<Option<Attempt>, Failed> {
    let last = found.head.as_ref().and_then(|h| h.event.logs.clone());
    if let (None, Some(manifest)) = (args.attempt, &last) {
        return Ok(Some(Attempt { fence: manifest.fence, manifest: last }));
    }
    let filter = EventFilter { tenant: Some(found.tenant.clone()), task_id: Some(args.task.id.clone()), kind: None };
    let mut events = bus.events(filter, From::Start, false).await?;
    let mut chosen: Option<Attempt> = None;
    while let Some(read) = events.next().await {
        let head = read?.head;
        let wanted = args.attempt.is_none_or(|n| n == head.event.task.attempt);
        if wanted && head.event.event == EventKind::TaskStarted {
            chosen = Some(Attempt { fence: head.sequence, manifest: None });
        }
        // task_retrying and the ends carry the manifest of their attempt.
        if let (Some(chosen), Some(manifest)) = (&mut chosen, head.event.logs)
            && chosen.fence == manifest.fence
        {
            chosen.manifest = Some(manifest);
        }
    }
    match (chosen, args.attempt) {
        (None, Some(n)) => Err(Failed::new(Exit::NotFound, format!("task {} has no attempt {n}", args.task.id))),
        (chosen, _) => Ok(chosen),
    }
}

fn verified(differences: &[String]) -> Result<Exit, Failed> {
    if differences.is_empty() {
        return Ok(Exit::Done);
    }
    Err(Failed::new(Exit::Unverified, format!("the output is not what the task's manifest says: {}", differences.join("; ")))
        .hint("chunks are kept for streams.logs_max_age_h and up to streams.logs_max; older ones are gone"))
}
