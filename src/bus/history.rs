//! Events of the past and, when asked, of the present: what is stored comes in batches, the rest one by one.

use std::collections::VecDeque;

use async_nats::jetstream::message::StreamMessage;

use super::bulk::Start;
use super::read::{EventFilter, ReadEvent, Tail, event_of};
use super::{Bus, BusError};
use crate::task::Time;

/// Reads events, oldest first.
#[derive(Debug)]
pub struct History {
    bus: Bus,
    filter: String,
    follow: bool,
    start: Start,
    ahead: VecDeque<StreamMessage>,
    /// Reads what batches did not give. The stream's leader says where the end is: a batch can come from a replica that is behind.
    tail: Option<Tail>,
}

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// With the oldest event that is kept.
    Oldest,
    /// With the first that was stored then or later.
    Since(Time),
    /// With the next that comes.
    New,
}

impl Bus {
    /// Events from `begin` on; with `follow` for ever.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn history(&self, filter: &EventFilter, begin: Begin, follow: bool) -> Result<History, BusError> {
        let start = match begin {
            Begin::Oldest => Start::Sequence(1),
            Begin::Since(time) => Start::Time(time),
            Begin::New => Start::Sequence(self.last_sequence(&self.subjects().events_stream()).await? + 1),
        };
        Ok(History { bus: self.clone(), filter: filter.subject(self.subjects()), follow, start, ahead: VecDeque::new(), tail: None })
    }
}

impl History {
    /// The next event; none at the end, unless following. Cancel safe.
    ///
    /// # Errors
    /// When the server does not answer, or an event cannot be read.
    pub async fn next(&mut self) -> Result<Option<ReadEvent>, BusError> {
        loop {
            if let Some(message) = self.ahead.pop_front() {
                self.start = Start::Sequence(message.sequence + 1);
                return event_of(&message).map(Some);
            }
            if let Some(tail) = &mut self.tail {
                return tail.next().await?.map(|message| event_of(&message)).transpose();
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> Result<(), BusError> {
        let stream = self.bus.subjects().events_stream();
        let next = match self.start {
            Start::Sequence(next) => next,
            // If nothing is that young yet, what comes is after the present end.
            Start::Time(_) => self.bus.last_sequence(&stream).await? + 1,
        };
        match (self.bus.batch(&stream, &self.filter, self.start, u64::MAX).await, self.start) {
            (Ok(batch), _) if !batch.messages.is_empty() => self.ahead = batch.messages.into(),
            // Streams that were made before they allowed batches.
            (Ok(_), _) | (Err(BusError::NoResponders { .. }), Start::Sequence(_)) => {
                self.tail = Some(self.bus.tail(&stream, &self.filter, next, self.follow).await?);
            }
            (Err(error), _) => return Err(error),
        }
        Ok(())
    }
}
