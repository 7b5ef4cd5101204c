//! `windlass dead`: what could not become a task, with the evidence.

use clap::Subcommand;
use serde_json::{Value, json};

use super::output::{Style, Table};
use super::{Exit, Failed, Global, Output, render};
use crate::bus::Bus;
use crate::bus::dead::DeadLetter;
use crate::task::{ClassName, TaskId, Tenant};
use crate::wire::Encoding;

/// Payload that is shown to people; `--raw` has all.
const SHOWN: usize = 64 * 1024;

/// `windlass dead …`
#[derive(Debug, Clone, Subcommand)]
pub enum DeadAction {
    /// List them, oldest first
    List {
        /// Only of this class
        #[arg(long)]
        class: Option<ClassName>,
        /// Only of this tenant
        #[arg(long)]
        tenant: Option<Tenant>,
    },
    /// Show one with its payload
    Show {
        /// Its number, from `dead list`
        sequence: u64,
        /// Write only the payload, byte for byte
        #[arg(long)]
        raw: bool,
    },
    /// Queue one again, as a new task: an id is used up by its first life
    Requeue {
        /// Its number, from `dead list`
        sequence: u64,
        /// The new task's id [default: a new UUIDv7]
        #[arg(long)]
        id: Option<TaskId>,
    },
}

/// Runs the verb.
pub(super) async fn run(global: &Global, action: DeadAction, output: &mut Output) -> Result<Exit, Failed> {
    let (bus, _) = global.connect().await?;
    match action {
        DeadAction::List { class, tenant } => list(&bus.dead_letters(class.as_ref(), tenant.as_ref()).await?, output),
        DeadAction::Show { sequence, raw } => show(&find(&bus, sequence).await?, raw, output),
        DeadAction::Requeue { sequence, id } => requeue(&bus, &find(&bus, sequence).await?, id, output).await,
    }
}

async fn find(bus: &Bus, sequence: u64) -> Result<DeadLetter, Failed> {
    bus.dead_letter(sequence).await?.ok_or_else(|| {
        Failed::new(Exit::NotFound, format!("no dead letter {sequence}")).hint("`windlass dead list` shows those that are kept")
    })
}

fn list(letters: &[DeadLetter], output: &Output) -> Result<Exit, Failed> {
    let mut table = Table::new(&["SEQUENCE", "STORED", "REASON", "CLASS", "TENANT", "TASK", "ERROR"]);
    for letter in letters {
        if output.is_json() {
            output.json(&as_json(letter))?;
            continue;
        }
        let or_dash = |text: &Option<String>| (text.clone().unwrap_or_else(|| "-".to_owned()), Style::Plain);
        table.row(vec![
            (letter.sequence.to_string(), Style::Plain),
            (letter.stored_at.to_string().chars().take(19).collect(), Style::Dim),
            (letter.reason.clone(), Style::Yellow),
            or_dash(&letter.class),
            or_dash(&letter.tenant),
            or_dash(&letter.task_id),
            (letter.error.chars().take(120).collect(), Style::Plain),
        ]);
    }
    if !output.is_json() {
        output.table(&table)?;
    }
    Ok(Exit::Done)
}

fn as_json(letter: &DeadLetter) -> Value {
    json!({
        "sequence": letter.sequence, "stored_at": letter.stored_at, "subject": letter.subject, "reason": letter.reason,
        "error": letter.error, "task_id": letter.task_id, "tenant": letter.tenant, "class": letter.class,
        "priority": letter.priority, "original_subject": letter.original_subject, "content_type": letter.content_type,
        "worker": letter.worker, "deliveries": letter.deliveries, "bytes": letter.payload.len(),
    })
}

fn show(letter: &DeadLetter, raw: bool, output: &Output) -> Result<Exit, Failed> {
    if raw {
        output.raw(&letter.payload, false)?;
        return Ok(Exit::Done);
    }
    if output.is_json() {
        use base64::Engine as _;
        let mut value = as_json(letter);
        value["payload_base64"] = base64::engine::general_purpose::STANDARD.encode(&letter.payload).into();
        value["assignment"] = decoded(letter).unwrap_or(Value::Null);
        output.json(&value)?;
        return Ok(Exit::Done);
    }
    let mut table = Table::pairs();
    table.pair("dead letter", Some(letter.sequence));
    table.pair("stored", Some(letter.stored_at));
    table.pair("reason", Some(&letter.reason));
    table.pair("error", Some(&letter.error));
    table.pair("published to", Some(&letter.original_subject));
    table.pair("content type", letter.content_type.as_ref());
    table.pair("given up by", letter.worker.as_ref());
    table.pair("deliveries", letter.deliveries);
    table.pair("payload", Some(render::size(letter.payload.len() as u64)));
    output.table(&table)?;
    let text = decoded(letter).and_then(|value| serde_json::to_string_pretty(&value).ok());
    let text = text.unwrap_or_else(|| String::from_utf8_lossy(&letter.payload).into_owned());
    output.line(&format!("\n{}", super::output::visible(&text.chars().take(SHOWN).collect::<String>())))?;
    Ok(Exit::Done)
}

/// The payload as JSON, when it can be read at all.
fn decoded(letter: &DeadLetter) -> Option<Value> {
    let encoding = Encoding::detect(letter.content_type.as_deref(), &letter.payload).ok()?;
    encoding.decode::<Value>(&letter.payload).ok()
}

async fn requeue(bus: &Bus, letter: &DeadLetter, id: Option<TaskId>, output: &Output) -> Result<Exit, Failed> {
    let id = match id {
        Some(id) => id,
        None => TaskId::new(uuid::Uuid::now_v7().to_string()).map_err(|e| Failed::new(Exit::Error, e.to_string()))?,
    };
    let submitted = bus.requeue_dead(letter, &id).await?;
    if output.is_json() {
        output.json(&json!({"task_id": id, "sequence": submitted.sequence, "dead_letter": letter.sequence}))?;
    } else {
        output.line(&format!("queued as task {id}"))?;
    }
    Ok(Exit::Done)
}
