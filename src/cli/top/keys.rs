//! What the keys of the live view do. Pure.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::model::Model;
use super::sheets::{self, Sheet, TIME};
use crate::task::Time;

/// A part of the view that can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Panel {
    Queues,
    Workers,
    Tasks,
}

impl Panel {
    /// From top to bottom.
    pub(super) const ALL: [Self; 3] = [Self::Queues, Self::Workers, Self::Tasks];
}

/// How a panel is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Order {
    /// The column that it is sorted by.
    pub(super) column: usize,
    /// Largest first.
    pub(super) descending: bool,
    /// The first row that is shown.
    pub(super) offset: usize,
}

/// What the person has chosen.
#[derive(Debug, Clone)]
pub(super) struct Ui {
    pub(super) panel: Panel,
    orders: [Order; 3],
    /// What tasks must have in tenant, class, worker or id.
    pub(super) filter: String,
    /// It is being typed.
    pub(super) typing: bool,
    /// What was there when the view was stopped.
    pub(super) paused: Option<Box<(Model, Time)>>,
}

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// To go on.
    Stay,
    /// To leave.
    Leave,
}

impl Ui {
    /// At the start.
    pub(super) fn new(filter: &str) -> Self {
        let by_name = Order { column: 0, descending: false, offset: 0 };
        let longest = Order { column: TIME, descending: true, offset: 0 };
        Self { panel: Panel::Tasks, orders: [by_name, by_name, longest], filter: filter.to_owned(), typing: false, paused: None }
    }

    /// How a panel is looked at.
    pub(super) fn order(&self, panel: Panel) -> Order {
        self.orders[panel as usize]
    }

    /// What a panel shows, in its order.
    pub(super) fn sheet(&self, panel: Panel, model: &Model, now: Time) -> Sheet {
        let mut sheet = match panel {
            Panel::Queues => sheets::queues(model, now, &self.filter),
            Panel::Workers => sheets::workers(model, now),
            Panel::Tasks => sheets::tasks(model, now, &self.filter),
        };
        let order = self.order(panel);
        // By class and priority as they are: the most urgent first.
        if panel != Panel::Queues || order.column > 1 || order.descending {
            sheet.sort(order.column, order.descending);
        }
        sheet
    }

    /// A key was pressed while `model` was known.
    pub(super) fn press(&mut self, key: KeyEvent, model: &Model, now: Time) -> Asked {
        if key.kind == KeyEventKind::Release {
            return Asked::Stay;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return if matches!(key.code, KeyCode::Char('c' | 'd')) { Asked::Leave } else { Asked::Stay };
        }
        if self.typing {
            self.type_filter(key.code);
            return Asked::Stay;
        }
        #[expect(clippy::wildcard_enum_match_arm, reason = "most keys do nothing")]
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Asked::Leave,
            KeyCode::Tab => self.choose(1),
            KeyCode::BackTab => self.choose(Panel::ALL.len() - 1),
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Char('p' | ' ') => self.paused = if self.paused.is_some() { None } else { Some(Box::new((model.clone(), now))) },
            KeyCode::Char('r') => self.chosen().descending = !self.chosen().descending,
            KeyCode::Left | KeyCode::Right => self.sort_by(key.code == KeyCode::Right, model, now),
            KeyCode::Up => self.scroll(-1, model, now),
            KeyCode::Down => self.scroll(1, model, now),
            KeyCode::PageUp => self.scroll(-10, model, now),
            KeyCode::PageDown => self.scroll(10, model, now),
            KeyCode::Home => self.chosen().offset = 0,
            KeyCode::End => self.scroll(isize::MAX, model, now),
            _ => {}
        }
        Asked::Stay
    }

    fn type_filter(&mut self, code: KeyCode) {
        #[expect(clippy::wildcard_enum_match_arm, reason = "most keys do nothing")]
        match code {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            // What tokens are made of.
            KeyCode::Char(c) if (c.is_ascii_alphanumeric() || matches!(c, '_' | '-')) && self.filter.len() < 64 => self.filter.push(c),
            _ => {}
        }
        self.orders.iter_mut().for_each(|order| order.offset = 0);
    }

    fn chosen(&mut self) -> &mut Order {
        &mut self.orders[self.panel as usize]
    }

    fn choose(&mut self, steps: usize) {
        self.panel = Panel::ALL[(self.panel as usize + steps) % Panel::ALL.len()];
    }

    fn sort_by(&mut self, right: bool, model: &Model, now: Time) {
        let columns = self.sheet(self.panel, model, now).columns.len();
        let order = self.chosen();
        order.column = (order.column + if right { 1 } else { columns - 1 }) % columns;
    }

    fn scroll(&mut self, by: isize, model: &Model, now: Time) {
        let last = self.sheet(self.panel, model, now).rows.len().saturating_sub(1);
        let order = self.chosen();
        order.offset = order.offset.saturating_add_signed(by).min(last);
    }
}
