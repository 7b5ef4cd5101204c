//! `windlass top`: the fleet as it is now, live on a terminal, or once.
//!
//! ```text
//!  what runs, queues, workers ─▶ ┐                 keys ─▶ ┐
//!  feed of events ─────────────▶ Model ─▶ sheets ─────────▶ view ─▶ terminal
//! ```
//! At the start what runs is read from the queues ([`crate::bus::queues`]): nothing is read for each event that is kept.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use ratatui::crossterm::event::Event;
use serde_json::json;

use super::follow::Interrupts;
use super::output::{Style, paint};
use super::{Exit, Failed, Global, Output};
use crate::bus::Bus;
use crate::task::Time;
use crate::worker::clock::Clock;
use keys::{Asked, Panel, Ui};
use model::Model;
use screen::Screen;
use source::Source;
use view::View;

mod keys;
mod model;
mod rates;
mod screen;
mod sheets;
mod source;
#[cfg(test)]
mod tests;
mod view;

/// Time between two pictures while nobody presses a key.
const PICTURE: Duration = Duration::from_millis(250);

/// `windlass top`
#[derive(Debug, Clone, Args)]
pub struct TopArgs {
    /// Print the present state once, and leave
    #[arg(long)]
    pub once: bool,
    /// Only tasks that have this text in tenant, class, worker or id
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub filter: String,
}

/// Runs the verb.
pub(super) async fn run(global: &Global, args: &TopArgs, output: &mut Output) -> Result<Exit, Failed> {
    if !args.once {
        check_terminal(output)?;
    }
    let mut interrupts = Interrupts::listen()?;
    let (bus, config) = global.connect().await?;
    let clock = Arc::new(Clock::default());
    let (mut model, feed, last) = tokio::select! {
        begun = source::begin(&bus, &clock) => begun?,
        () = interrupts.next() => return Ok(Exit::Interrupted),
    };
    let ui = Ui::new(&args.filter);
    if args.once {
        source::history(&mut model, feed, last).await?;
        return snapshot(&model, &ui, clock.now(), output);
    }
    let source = Source::start(&bus, feed, &clock);
    let fleet = config.bus.prefix.to_string();
    live(Live { bus, source, model, ui, clock, fleet, colour: output.colour() }, interrupts).await
}

/// The live view needs somebody who looks.
fn check_terminal(output: &Output) -> Result<(), Failed> {
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    if output.is_json() {
        return Err(Failed::new(Exit::Usage, "the live view is no JSON").hint("`windlass top --once -o json` prints the present state"));
    }
    if dumb || !std::io::stdout().is_terminal() {
        return Err(Failed::new(Exit::Usage, "the live view needs a terminal").hint("`windlass top --once` prints the present state"));
    }
    Ok(())
}

struct Live {
    bus: Bus,
    source: Source,
    model: Model,
    ui: Ui,
    clock: Arc<Clock>,
    fleet: String,
    colour: bool,
}

/// Draws what comes until somebody leaves.
async fn live(mut live: Live, mut interrupts: Interrupts) -> Result<Exit, Failed> {
    let mut screen = Screen::enter().map_err(|e| Failed::new(Exit::Error, format!("cannot use the terminal: {e}")))?;
    let mut pictures = tokio::time::interval(PICTURE);
    pictures.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            update = live.source.next() => {
                live.model.apply(update?);
                while let Some(update) = live.source.ready() {
                    live.model.apply(update);
                }
                // The next picture shows it.
                continue;
            }
            input = screen.input() => {
                if let Event::Key(key) = input?
                    && live.ui.press(key, &live.model, live.clock.now()) == Asked::Leave
                {
                    return Ok(Exit::Done);
                }
            }
            _ = pictures.tick() => {}
            () = interrupts.next() => return Ok(Exit::Done),
        }
        let Live { bus, model, ui, clock, fleet, colour, source: _ } = &live;
        screen.draw(&View { model, now: clock.now(), ui, connected: bus.is_connected(), fleet, colour: *colour })?;
    }
}

/// The present state in words or as JSON.
fn snapshot(model: &Model, ui: &Ui, now: Time, output: &Output) -> Result<Exit, Failed> {
    if output.is_json() {
        output.json(&as_json(model, ui, now))?;
        return Ok(Exit::Done);
    }
    output.table(&sheets::rates(model, now).table())?;
    for panel in Panel::ALL {
        let sheet = ui.sheet(panel, model, now);
        output.line(&format!("\n{}", paint(&sheet.title, Style::Bold, output.colour())))?;
        output.table(&sheet.table())?;
    }
    Ok(Exit::Done)
}

fn as_json(model: &Model, ui: &Ui, now: Time) -> serde_json::Value {
    let rates: serde_json::Map<_, _> =
        rates::WINDOWS.into_iter().map(|window| (format!("last_{window}s"), json!(model.rates.over(window, now)))).collect();
    let running: Vec<_> = model.running().filter(|task| sheets::wanted(task, &ui.filter)).collect();
    json!({"time": now, "per_second": rates, "queues": model.queues, "workers": model.workers, "running": running, "more": model.more})
}
