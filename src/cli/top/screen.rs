//! The terminal of the live view: taken, and given back as it was, however the view ends.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event};
use tokio::sync::mpsc;

use super::view::View;

/// How often the keys' thread looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(100);

/// The terminal in raw mode, on its second screen.
pub(super) struct Screen {
    terminal: DefaultTerminal,
    over: Arc<AtomicBool>,
    inputs: mpsc::Receiver<io::Result<Event>>,
}

impl Screen {
    /// Takes the terminal. A panic gives it back before it is told.
    pub(super) fn enter() -> io::Result<Self> {
        let terminal = ratatui::try_init().inspect_err(|_| restore())?;
        let over = Arc::new(AtomicBool::new(false));
        // Keys are few; whoever types faster than the view draws waits.
        let (sender, inputs) = mpsc::channel(16);
        let stop = Arc::clone(&over);
        std::thread::Builder::new().name("keys".to_owned()).spawn(move || listen(&stop, &sender)).inspect_err(|_| restore())?;
        Ok(Self { terminal, over, inputs })
    }

    /// Draws it.
    pub(super) fn draw(&mut self, view: &View<'_>) -> io::Result<()> {
        self.terminal.draw(|frame| view.render(frame)).map(|_| ())
    }

    /// The next key, or what else the terminal says. Cancel safe.
    pub(super) async fn input(&mut self) -> io::Result<Event> {
        self.inputs.recv().await.unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        restore();
        let _ = self.terminal.show_cursor();
    }
}

fn restore() {
    // A terminal that is gone needs nothing.
    let _ = ratatui::try_restore();
}

fn listen(over: &AtomicBool, inputs: &mpsc::Sender<io::Result<Event>>) {
    while !over.load(Ordering::Relaxed) {
        let input = match event::poll(LOOK) {
            Ok(false) => continue,
            Ok(true) => event::read(),
            Err(error) => Err(error),
        };
        let broken = input.is_err();
        if inputs.blocking_send(input).is_err() || broken {
            return;
        }
    }
}
