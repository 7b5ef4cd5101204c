//! The view without a terminal and without a server.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::json;

use super::keys::{Asked, Panel, Ui};
use super::model::{MOST_TASKS, Model, Update};
use super::view::View;
use crate::bus::chain::Head;
use crate::bus::feed::Stamped;
use crate::bus::presence::Presence;
use crate::bus::queues::Queue;
use crate::task::{EventKind, Time, WorkerId};

fn at(seconds: i64) -> Time {
    Time::from_micros(1_800_000_000_000_000 + seconds * 1_000_000)
}

fn event(kind: EventKind, task: &str, sequence: u64, second: i64) -> Stamped {
    let value = json!({
        "v": 1, "event": kind, "id": "i", "time": at(second), "seq": 0, "nonce": "n", "prev_sha256": null,
        "task": {"task_id": task, "tenant": "acme", "class": "cpu_short", "attempt": 1, "max_attempts": 3, "released_attempts": 0,
                 "deliveries": 1, "submitted_at": at(0), "assignment_sha256": "", "context": null, "labels": {}},
        "worker": {"worker_id": "worker-1", "instance": "i", "host": "h", "version": "0"},
    });
    let event = serde_json::from_value(value).expect("an event");
    Stamped { head: Head { sequence, event, sha256: String::new() }, stored: at(second) }
}

fn progress(task: &str, sequence: u64, progress: serde_json::Value) -> Stamped {
    let mut stamped = event(EventKind::TaskProgress, task, sequence, 2);
    stamped.head.event.progress = serde_json::from_value(progress).expect("progress");
    stamped
}

fn news(model: &mut Model, stamped: Stamped) {
    model.apply(Update::Event(Box::new(stamped)));
}

fn worker(id: &str, running: u32) -> Presence {
    Presence {
        worker_id: WorkerId::new(id).expect("a token"),
        instance: "i".to_owned(),
        host: "host-a".to_owned(),
        version: "0.1.0".to_owned(),
        classes: vec!["cpu_short".to_owned()],
        unserved: std::collections::BTreeMap::new(),
        slots: 8,
        running,
        draining: false,
        time: at(8),
    }
}

fn queue(class: &str, priority: &str, waiting: u64) -> Queue {
    let oldest = (waiting > 0).then(|| at(-80));
    Queue { class: class.to_owned(), priority: priority.to_owned(), waiting, in_flight: 2, redelivered: 1, oldest }
}

fn fleet() -> Model {
    let mut model = Model::default();
    model.apply(Update::Queues(vec![queue("cpu_short", "high", 0), queue("cpu_short", "normal", 17)]));
    model.apply(Update::Workers(vec![worker("worker-1", 2), worker("worker-2", 0)]));
    news(&mut model, event(EventKind::TaskStarted, "first", 1, 0));
    news(&mut model, event(EventKind::TaskStarted, "second", 2, 1));
    news(&mut model, progress("second", 3, json!({"pct": 40.0, "stage": "FIT", "message": "epoch \u{1b}[2J3\u{202e}"})));
    model
}

/// The screen as lines.
fn screen(model: &Model, ui: &Ui, connected: bool, size: (u16, u16)) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(size.0, size.1)).expect("a test's terminal");
    let view = View { model, now: at(10), ui, connected, fleet: "windlass", colour: true };
    terminal.draw(|frame| view.render(frame)).expect("it draws");
    let buffer = terminal.backend().buffer();
    let line = |y: u16| (0..size.0).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    (0..size.1).map(line).collect()
}

fn line_with<'a>(lines: &'a [String], text: &str) -> &'a str {
    lines.iter().find(|line| line.contains(text)).unwrap_or_else(|| panic!("{text:?} is not on the screen:\n{}", lines.join("\n")))
}

fn press(ui: &mut Ui, model: &Model, code: KeyCode) -> Asked {
    ui.press(KeyEvent::new(code, KeyModifiers::NONE), model, at(10))
}

#[test]
fn what_runs_is_what_was_started_and_has_not_ended() {
    let mut model = fleet();
    let ids = |model: &Model| model.running().map(|task| task.task_id.to_string()).collect::<Vec<_>>();
    assert_eq!(ids(&model), ["first", "second"]);
    for (kind, sequence) in [(EventKind::TaskRetrying, 4), (EventKind::TaskStarted, 5), (EventKind::TaskReleased, 6)] {
        news(&mut model, event(kind, "first", sequence, 3));
        assert_eq!(ids(&model).contains(&"first".to_owned()), kind == EventKind::TaskStarted, "{kind}");
    }
    news(&mut model, event(EventKind::TaskCompleted, "second", 7, 3));
    news(&mut model, event(EventKind::TaskFailed, "first", 8, 3));
    assert_eq!(ids(&model), Vec::<String>::new());
}

#[test]
fn a_start_that_is_ahead_of_the_feed_is_not_undone_by_it() {
    let mut model = Model::default();
    model.apply(Update::Running(vec![event(EventKind::TaskStarted, "a", 10, 5), progress("a", 12, json!({"pct": 70}))]));
    // The feed begins earlier: the first attempt, its end, and what was read already.
    news(&mut model, event(EventKind::TaskStarted, "a", 3, 1));
    news(&mut model, event(EventKind::TaskRetrying, "a", 9, 4));
    news(&mut model, event(EventKind::TaskStarted, "a", 10, 5));
    let task = model.running().next().expect("it runs");
    assert_eq!((task.pct, task.started_at), (Some(70.0), Some(at(5))));
    news(&mut model, event(EventKind::TaskCompleted, "a", 13, 6));
    assert_eq!(model.running().count(), 0);
    let rates = model.rates.over(10, at(6));
    assert_eq!((rates.started, rates.completed, rates.retrying), (0.2, 0.1, 0.1), "each counts once, what was only read at the start not");
}

#[test]
fn an_event_that_comes_twice_counts_once() {
    let mut model = Model::default();
    for _ in 0..3 {
        news(&mut model, event(EventKind::TaskStarted, "a", 4, 5));
    }
    assert_eq!(model.rates.over(10, at(6)).started, 0.1);
}

#[test]
fn memory_is_bounded_however_much_runs() {
    let mut model = Model::default();
    for n in 0..MOST_TASKS as u64 + 50 {
        news(&mut model, event(EventKind::TaskStarted, &format!("t{n}"), n + 1, 1));
    }
    assert_eq!((model.running().count(), model.more), (MOST_TASKS, true));
    news(&mut model, progress("t0", 20_000, json!({"message": "x".repeat(100_000)})));
    let task = model.running().find(|task| task.task_id.as_str() == "t0").expect("it is kept");
    assert!(task.message.as_ref().expect("a message").len() < 1000);
}

#[test]
fn the_screen_says_what_is_known() {
    let lines = screen(&fleet(), &Ui::new(""), true, (140, 30));
    assert!(lines[0].starts_with("windlass top  windlass  08:00:10"), "{}", lines[0]);
    assert!(line_with(&lines, "per second, 60 s").contains("0.03"), "{}", lines.join("\n"));
    let normal = line_with(&lines, "normal");
    assert!(["cpu_short", "17", "1 min 30 s", "2", "1"].iter().all(|word| normal.contains(word)), "{normal}");
    let worker = line_with(&lines, "host-a");
    assert!(["worker-1", "2/8", "2.0 s ago"].iter().all(|word| worker.contains(word)), "{worker}");
    let task = line_with(&lines, "second ");
    assert!(["acme", "1/3", "worker-1", "9.0 s", "40 %", "FIT  epoch"].iter().all(|word| task.contains(word)), "{task}");
    assert!(!lines.join("").contains(|c: char| c.is_control() || c == '\u{202e}'), "what a task wrote drives nothing");
}

#[test]
fn a_lost_connection_and_trouble_are_said() {
    let mut model = fleet();
    assert!(screen(&model, &Ui::new(""), false, (100, 24))[0].contains("disconnected"));
    model.apply(Update::Trouble("no answer\u{1b}c".to_owned()));
    assert!(screen(&model, &Ui::new(""), true, (100, 24))[0].contains("no answer\u{fffd}c"));
    model.apply(Update::Queues(vec![]));
    assert!(!screen(&model, &Ui::new(""), true, (100, 24))[0].contains("no answer"), "it is over");
}

#[test]
fn every_size_can_be_drawn() {
    let model = fleet();
    for width in [0, 1, 10, 80, 300] {
        for height in [0, 1, 5, 12, 24, 100] {
            screen(&model, &Ui::new(""), true, (width, height));
        }
    }
}

#[test]
fn keys_sort_filter_pause_and_leave() {
    let mut model = fleet();
    let mut ui = Ui::new("");
    let order = |ui: &Ui, model: &Model| {
        let sheet = ui.sheet(Panel::Tasks, model, at(10));
        sheet.rows.iter().map(|row| row[0].text.clone()).collect::<Vec<_>>()
    };
    assert_eq!(order(&ui, &model), ["first", "second"], "those that run longest first");
    press(&mut ui, &model, KeyCode::Char('r'));
    assert_eq!(order(&ui, &model), ["second", "first"]);
    for code in [KeyCode::Char('/'), KeyCode::Char('f'), KeyCode::Char('i'), KeyCode::Char('q'), KeyCode::Backspace] {
        assert_eq!(press(&mut ui, &model, code), Asked::Stay);
    }
    assert_eq!((ui.filter.as_str(), order(&ui, &model).as_slice()), ("fi", ["first".to_owned()].as_slice()));
    press(&mut ui, &model, KeyCode::Esc);
    assert_eq!((ui.filter.as_str(), ui.typing), ("", false));
    press(&mut ui, &model, KeyCode::Char('p'));
    news(&mut model, event(EventKind::TaskCompleted, "second", 9, 9));
    let lines = screen(&model, &ui, true, (120, 30));
    assert!(lines[0].contains("paused"));
    line_with(&lines, "second ");
    press(&mut ui, &model, KeyCode::Char('p'));
    assert!(!screen(&model, &ui, true, (120, 30)).iter().any(|line| line.contains("second ")), "it goes on where the fleet is");
    press(&mut ui, &model, KeyCode::Tab);
    assert_eq!(ui.panel, Panel::Queues);
    assert_eq!(press(&mut ui, &model, KeyCode::Esc), Asked::Leave);
    assert_eq!(press(&mut ui, &model, KeyCode::Char('q')), Asked::Leave);
    assert_eq!(ui.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL), &model, at(10)), Asked::Leave);
}

#[test]
fn long_lists_can_be_scrolled_and_not_beyond_their_end() {
    let mut model = Model::default();
    for n in 0..40 {
        news(&mut model, event(EventKind::TaskStarted, &format!("task-{n:02}"), n + 1, i64::try_from(n).expect("small")));
    }
    let mut ui = Ui::new("");
    assert!(!screen(&model, &ui, true, (100, 24)).iter().any(|line| line.contains("task-39")));
    press(&mut ui, &model, KeyCode::End);
    line_with(&screen(&model, &ui, true, (100, 24)), "task-39");
    press(&mut ui, &model, KeyCode::PageDown);
    assert_eq!(ui.order(Panel::Tasks).offset, 39);
    press(&mut ui, &model, KeyCode::Home);
    line_with(&screen(&model, &ui, true, (100, 24)), "task-00");
}
