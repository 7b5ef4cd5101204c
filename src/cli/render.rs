//! Events and ends of tasks, as people read them.

use std::time::Duration;

use super::output::Style;
use crate::bus::chain::Head;
use crate::task::Profile;
use crate::task::chain::RunState;
use crate::task::limits::{Limits, Usage};
use crate::task::{ByteSize, Event, EventKind, Time};

/// The colour of a state.
pub(super) fn style_of(state: RunState) -> Style {
    match state {
        RunState::Pending => Style::Plain,
        RunState::Running | RunState::Retrying => Style::Yellow,
        RunState::Succeeded => Style::Green,
        RunState::Failed | RunState::Timeout | RunState::Canceled => Style::Red,
    }
}

/// An event as a line of columns that fit most ids; a stream of lines cannot be aligned afterwards.
pub(crate) fn event_line(head: &Head, colour: bool) -> String {
    let event = &head.event;
    let kind = super::output::paint(&format!("{:<14}", event.event.as_str()), style_of(RunState::of_last(event)), colour);
    let detail = super::output::visible(&detail(event)).replace('\n', " ");
    format!("{:>8}  {}  {:<36}  {kind}  {detail}", head.sequence, clock(event.time), event.task.task_id.as_str())
}

/// What an event says, in a few words.
pub(super) fn detail(event: &Event) -> String {
    let attempt = event.task.attempt;
    match event.event {
        EventKind::TaskStarted => {
            let queued = event.run.as_ref().map(|r| format!(", {} in the queue", millis(r.queued_ms))).unwrap_or_default();
            format!("attempt {attempt} on {}{queued}", event.worker.worker_id)
        }
        EventKind::TaskProgress => {
            let Some(p) = &event.progress else { return String::new() };
            let pct = p.pct.map(|pct| format!("{pct:.0} %"));
            [pct, p.stage.clone(), p.message.clone()].into_iter().flatten().collect::<Vec<_>>().join("  ")
        }
        EventKind::TaskRetrying => {
            let when = event.retry.as_ref().and_then(|r| r.not_before);
            let when = when.map(|t| format!(", again in {}", duration(t.after(event.time)))).unwrap_or_default();
            format!("attempt {attempt} ended: {}{when}", end(event))
        }
        EventKind::TaskReleased => format!("attempt {attempt} given back by {}", event.worker.worker_id),
        EventKind::TaskCompleted | EventKind::TaskFailed => end(event),
    }
}

/// How it ended: reason, status, error, duration.
pub(super) fn end(event: &Event) -> String {
    let reason = event.reason.map(|r| r.as_str().to_owned());
    let took = event.run.as_ref().and_then(|r| r.duration_ms).map(|ms| format!("after {}", millis(ms)));
    [reason, event.error.clone(), took].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// The sandbox that a task ran in.
pub(super) fn sandbox(profile: Profile, missing: &[String]) -> String {
    if missing.is_empty() { profile.to_string() } else { format!("{profile}, without {}", missing.join(", ")) }
}

/// What a task may use.
pub(super) fn limits(limits: &Limits) -> String {
    let unenforced = if limits.enforced { "" } else { ", not enforced" };
    let time = millis(limits.timeout_ms);
    format!("{} CPUs, {}, {} processes, {time}{unenforced}", limits.cpus, size(limits.memory_bytes), limits.pids)
}

/// What a task used.
pub(super) fn usage(usage: &Usage) -> String {
    let cpu = Duration::from_micros(usage.cpu_user_us.saturating_add(usage.cpu_system_us));
    let mut text = format!("{} of CPU, {} at most, {} processes", duration(cpu), size(usage.memory_peak_bytes), usage.pids_peak);
    if usage.throttled_us > 0 {
        text.push_str(&format!(", held back for {}", duration(Duration::from_micros(usage.throttled_us))));
    }
    if usage.oom_kills > 0 {
        text.push_str(&format!(", {} killed for memory", usage.oom_kills));
    }
    if usage.leaked_processes > 0 {
        text.push_str(&format!(", {} left behind and killed", usage.leaked_processes));
    }
    text
}

/// A size with three digits or so.
pub(super) fn size(bytes: u64) -> String {
    for (unit, factor) in [("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if bytes >= 1 << factor {
            let tenths = (u128::from(bytes) * 10) >> factor;
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{} bytes", ByteSize(bytes).bytes())
}

fn millis(ms: u64) -> String {
    duration(Duration::from_millis(ms))
}

/// A duration with three digits or so.
pub(super) fn duration(d: Duration) -> String {
    let s = d.as_secs();
    match s {
        0 if d.as_millis() == 0 => "<1 ms".to_owned(),
        0 => format!("{} ms", d.as_millis()),
        1..=59 => format!("{}.{} s", s, d.subsec_millis() / 100),
        60..=3599 => format!("{} min {} s", s / 60, s % 60),
        _ => format!("{} h {} min", s / 3600, s / 60 % 60),
    }
}

/// The time of day in UTC, to the millisecond: `10:02:11.482`.
fn clock(time: Time) -> String {
    time.to_string().get(11..23).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        for (ms, text) in [(0, "<1 ms"), (7, "7 ms"), (840, "840 ms"), (1210, "1.2 s"), (61_000, "1 min 1 s"), (7_260_000, "2 h 1 min")] {
            assert_eq!(millis(ms), text);
        }
        for (bytes, text) in [(12, "12 bytes"), (1536, "1.5 KiB"), (512 << 20, "512.0 MiB"), (3 << 30, "3.0 GiB")] {
            assert_eq!(size(bytes), text);
        }
    }
}
