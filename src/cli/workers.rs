//! `windlass workers`: who is there, and how each is doing.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::follow::Interrupts;
use super::output::{Style, Table};
use super::{Exit, Failed, Global, Output, render};
use crate::bus::presence::{Heard, Standing};
use crate::bus::{Bus, BusError};
use crate::task::{Time, WorkerId};

/// How often they are looked at; each speaks every five seconds.
const LOOK: Duration = Duration::from_secs(1);

/// `windlass workers`
#[derive(Debug, Clone, Args)]
pub struct WorkersArgs {
    /// Go on until Ctrl-C: a terminal shows the newest, else tables or changes follow each other
    #[arg(short, long)]
    pub watch: bool,
}

/// Runs the verb.
pub(super) async fn run(global: &Global, args: &WorkersArgs, output: &Output) -> Result<Exit, Failed> {
    let (bus, _) = global.connect().await?;
    if args.watch {
        return watch(&bus, output).await;
    }
    let seen = Seen::look(&bus).await?;
    if output.is_json() {
        for worker in &seen.workers {
            output.json(&as_json(worker, seen.now))?;
        }
    } else {
        output.table(&seen.table())?;
    }
    Ok(Exit::Done)
}

/// Everybody at one time.
#[derive(Debug)]
struct Seen {
    workers: Vec<Heard>,
    /// By the server's clock, as the times at which they were heard.
    now: Time,
}

impl Seen {
    async fn look(bus: &Bus) -> Result<Self, BusError> {
        let workers = bus.workers_heard().await?;
        Ok(Self { workers, now: bus.server_time().await? })
    }

    fn table(&self) -> Table {
        let mut table = Table::new(&["WORKER", "STATE", "RUNNING", "SLOTS", "CLASSES", "HOST", "VERSION", "HEARD"]);
        for heard in &self.workers {
            let worker = &heard.presence;
            let plain = |text: &str| (text.to_owned(), Style::Plain);
            let standing = heard.standing(self.now);
            table.row(vec![
                plain(worker.worker_id.as_str()),
                (word(standing).to_owned(), style_of(standing)),
                plain(&worker.running.to_string()),
                plain(&worker.slots.to_string()),
                plain(&worker.classes.join(",")),
                plain(&worker.host),
                plain(&worker.version),
                (format!("{} ago", render::duration(self.now.after(heard.at))), Style::Dim),
            ]);
        }
        table
    }
}

fn word(standing: Standing) -> &'static str {
    match standing {
        Standing::Ready => "ready",
        Standing::Draining => "draining",
        Standing::Lost => "lost",
    }
}

fn style_of(standing: Standing) -> Style {
    match standing {
        Standing::Ready => Style::Green,
        Standing::Draining => Style::Yellow,
        Standing::Lost => Style::Red,
    }
}

fn as_json(heard: &Heard, now: Time) -> Value {
    line(heard, word(heard.standing(now)))
}

fn line(heard: &Heard, state: &str) -> Value {
    let worker = &heard.presence;
    json!({
        "worker_id": worker.worker_id, "instance": worker.instance, "host": worker.host, "version": worker.version,
        "classes": worker.classes, "unserved": worker.unserved, "slots": worker.slots, "running": worker.running, "state": state, "heard_at": heard.at,
    })
}

async fn watch(bus: &Bus, output: &Output) -> Result<Exit, Failed> {
    let mut interrupts = Interrupts::listen()?;
    let mut told = Told::default();
    let mut frames = output.frames();
    loop {
        tokio::select! {
            seen = Seen::look(bus) => match seen {
                Ok(seen) if output.is_json() => {
                    for line in told.news(&seen) {
                        output.json(&line)?;
                    }
                }
                Ok(seen) => frames.show(&seen.table())?,
                // Who watches wants to see it come back.
                Err(error) if error.is_transient() => output.warn(&error.to_string()),
                Err(error) => return Err(error.into()),
            },
            () = interrupts.next() => return Ok(Exit::Done),
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = interrupts.next() => return Ok(Exit::Done),
        }
    }
}

/// What was said of whom.
#[derive(Debug, Default)]
struct Told(BTreeMap<WorkerId, (Heard, Standing)>);

impl Told {
    /// A line for each worker that said something new, was lost, or is gone.
    fn news(&mut self, seen: &Seen) -> Vec<Value> {
        let mut news = Vec::new();
        let mut now = BTreeMap::new();
        for heard in &seen.workers {
            let standing = heard.standing(seen.now);
            let before = self.0.remove(&heard.presence.worker_id);
            if before.is_none_or(|(last, was)| last != *heard || was != standing) {
                news.push(line(heard, word(standing)));
            }
            now.insert(heard.presence.worker_id.clone(), (heard.clone(), standing));
        }
        news.extend(self.0.values().map(|(last, _)| line(last, "gone")));
        self.0 = now;
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::presence::Presence;

    fn heard(id: &str, at: i64) -> Heard {
        let presence = Presence {
            worker_id: WorkerId::new(id).unwrap(),
            instance: format!("{id}-1"),
            host: "h".to_owned(),
            version: "0".to_owned(),
            classes: vec!["a".to_owned(), "b".to_owned()],
            unserved: BTreeMap::new(),
            slots: 4,
            running: 1,
            draining: false,
            time: Time::from_micros(0),
        };
        Heard { presence, at: Time::from_micros(at * 1_000_000) }
    }

    #[test]
    fn a_watcher_hears_what_is_new_and_who_is_gone() {
        let mut told = Told::default();
        let mut look = |workers: Vec<Heard>, now: i64| -> Vec<String> {
            let news = told.news(&Seen { workers, now: Time::from_micros(now * 1_000_000) });
            news.iter().map(|line| format!("{} {}", line["worker_id"].as_str().unwrap(), line["state"].as_str().unwrap())).collect()
        };
        assert_eq!(look(vec![heard("a", 0), heard("b", 0)], 1), ["a ready", "b ready"]);
        assert_eq!(look(vec![heard("a", 0), heard("b", 0)], 2), Vec::<String>::new());
        assert_eq!(look(vec![heard("a", 5), heard("b", 0)], 5), ["a ready"]);
        assert_eq!(look(vec![heard("a", 10), heard("b", 0)], 15), ["a ready", "b lost"]);
        assert_eq!(look(vec![heard("a", 10)], 16), ["b gone"]);
        assert_eq!(look(vec![], 17), ["a gone"]);
    }
}
