//! The live view, drawn from what is known and chosen. Pure.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style as Look};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Table, TableState};

use super::super::output::{Style, visible};
use super::keys::{Panel, Ui};
use super::model::Model;
use super::sheets::{self, Sheet};
use crate::task::Time;

/// What is drawn.
#[derive(Debug)]
pub(super) struct View<'a> {
    /// What is known.
    pub(super) model: &'a Model,
    /// The time, by the server's clock.
    pub(super) now: Time,
    /// What the person has chosen.
    pub(super) ui: &'a Ui,
    /// There is a connection.
    pub(super) connected: bool,
    /// Which fleet this is.
    pub(super) fleet: &'a str,
    /// Whether colours are wanted.
    pub(super) colour: bool,
}

impl View<'_> {
    /// Draws it.
    pub(super) fn render(&self, frame: &mut Frame<'_>) {
        let (model, now) = self.ui.paused.as_deref().map_or((self.model, self.now), |(model, now)| (model, *now));
        let sheets = Panel::ALL.map(|panel| self.ui.sheet(panel, model, now));
        let [queues, workers] = [0, 1].map(|n| Constraint::Max(self.share(&sheets[n], Panel::ALL[n], frame.area().height)));
        let constraints = [Constraint::Length(1), Constraint::Length(3), queues, workers, Constraint::Min(4), Constraint::Length(1)];
        let [head, rates, areas @ .., foot] = Layout::vertical(constraints).areas::<6>(frame.area());
        frame.render_widget(Paragraph::new(self.heading(now)), head);
        self.sheet(frame, rates, &sheets::rates(model, now), None);
        for ((panel, sheet), area) in Panel::ALL.into_iter().zip(&sheets).zip(areas) {
            self.sheet(frame, area, sheet, Some(panel));
        }
        frame.render_widget(Paragraph::new(self.foot()), foot);
    }

    /// Rows of the screen for a panel above the tasks: more when it is chosen.
    fn share(&self, sheet: &Sheet, panel: Panel, height: u16) -> u16 {
        let most = if self.ui.panel == panel { height / 2 } else { height / 5 };
        u16::try_from(sheet.rows.len()).unwrap_or(u16::MAX).saturating_add(2).min(most.max(4))
    }

    fn look(&self, style: Style) -> Look {
        let colour = |c: Color| if self.colour { Look::new().fg(c) } else { Look::new() };
        match style {
            Style::Plain => Look::new(),
            Style::Green => colour(Color::Green),
            Style::Red => colour(Color::Red),
            Style::Yellow => colour(Color::Yellow),
            Style::Dim => Look::new().add_modifier(Modifier::DIM),
            Style::Bold => Look::new().add_modifier(Modifier::BOLD),
        }
    }

    fn heading(&self, now: Time) -> Line<'_> {
        let time = now.to_string().get(11..19).unwrap_or_default().to_owned();
        let mut spans = vec![Span::styled("windlass top  ", self.look(Style::Bold)), Span::raw(format!("{}  {time}  ", shown(self.fleet)))];
        if !self.connected {
            spans.push(Span::styled("disconnected: what is shown is old  ", self.look(Style::Red)));
        }
        if self.ui.paused.is_some() {
            spans.push(Span::styled("paused  ", self.look(Style::Yellow)));
        }
        if let Some(trouble) = self.model.trouble.as_ref().filter(|_| self.connected) {
            spans.push(Span::styled(shown(trouble), self.look(Style::Red)));
        }
        Line::from(spans)
    }

    fn foot(&self) -> Line<'_> {
        if self.ui.typing {
            return Line::from(format!("filter (tenant, class, worker, task): {}_", self.ui.filter));
        }
        let filter = if self.ui.filter.is_empty() { String::new() } else { format!("filter: {}   ", self.ui.filter) };
        Line::styled(format!("{filter}q leave   tab panel   ←→ sort   r reverse   ↑↓ scroll   / filter   p pause"), self.look(Style::Dim))
    }

    fn sheet(&self, frame: &mut Frame<'_>, area: Rect, sheet: &Sheet, panel: Option<Panel>) {
        let order = panel.map(|panel| self.ui.order(panel));
        let chosen = panel == Some(self.ui.panel);
        let heading = sheet.columns.iter().enumerate().map(|(n, column)| {
            let sorted = chosen && order.is_some_and(|order| order.column == n);
            let look = self.look(Style::Bold);
            Cell::from(*column).style(if sorted { look.add_modifier(Modifier::UNDERLINED) } else { look })
        });
        let offset = order.map_or(0, |order| order.offset);
        // Only what can be seen: there may be thousands.
        let seen = sheet.rows.iter().skip(offset).take(usize::from(area.height));
        let rows: Vec<_> = seen.map(|row| row.iter().map(|cell| (shown(&cell.text), self.look(cell.style))).collect::<Vec<_>>()).collect();
        let widths = widths(sheet, &rows, usize::from(area.width / 4));
        let rows = rows.into_iter().map(|row| Row::new(row.into_iter().map(|(text, look)| Cell::from(text).style(look))));
        let mut table = Table::new(rows, widths).header(Row::new(heading)).column_spacing(2);
        if panel.is_some() {
            let look = self.look(if chosen { Style::Bold } else { Style::Dim });
            let title = Line::styled(format!("{} {} ", if chosen { "▶" } else { " " }, sheet.title), look);
            table = table.block(Block::new().title_top(title));
        }
        frame.render_stateful_widget(table, area, &mut TableState::new());
    }
}

/// As wide as what is in them, but not more than `most`; the last one takes what is left.
fn widths(sheet: &Sheet, rows: &[Vec<(String, Look)>], most: usize) -> Vec<Constraint> {
    let last = sheet.columns.len().saturating_sub(1);
    let width = |n: usize, name: &str| {
        let widest = rows.iter().filter_map(|row| row.get(n)).map(|(text, _)| text.chars().count()).max().unwrap_or(0);
        let width = widest.max(name.chars().count()).min(most);
        Constraint::Length(u16::try_from(width).unwrap_or(u16::MAX))
    };
    sheet.columns.iter().enumerate().map(|(n, name)| if n == last { Constraint::Fill(1) } else { width(n, name) }).collect()
}

/// Names come from whoever may publish: nothing in them drives the terminal.
fn shown(text: &str) -> String {
    visible(text).replace(['\n', '\t'], " ")
}
