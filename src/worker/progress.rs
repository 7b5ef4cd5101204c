//! `WINDLASS_PROGRESS`: lines that a task appends, followed while it runs.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};

use crate::mask::Masker;
use crate::task::Time;
use crate::task::event::Progress;
use crate::task::stage::StageEntry;

/// Longest line that is read; a task that writes no line breaks must not grow the worker.
const MAX_LINE: usize = 16 * 1024;
/// Bytes read at one look.
const MAX_READ: u64 = 256 * 1024;
/// Longest text of a stage or message in an event.
const MAX_TEXT: usize = 1024;
/// Entries of a task's own stages that are kept for the terminal event.
const MAX_STAGES: usize = 64;

/// Follows one progress file.
#[derive(Debug)]
pub struct ProgressFile {
    path: PathBuf,
    offset: u64,
    partial: Vec<u8>,
    stages: Vec<StageEntry>,
    mask: Masker,
}

impl ProgressFile {
    /// Follows `path`, which need not exist yet.
    #[must_use]
    pub fn new(path: PathBuf, mask: Masker) -> Self {
        Self { path, offset: 0, partial: Vec::new(), stages: Vec::new(), mask }
    }

    /// What was written since the last look: the newest report, if there is one.
    pub fn look(&mut self) -> Option<Progress> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut file = std::fs::File::from(rustix::fs::open(&self.path, flags, Mode::empty()).ok()?);
        let metadata = file.metadata().ok()?;
        if !metadata.is_file() || metadata.len() <= self.offset {
            return None;
        }
        file.seek(SeekFrom::Start(self.offset)).ok()?;
        let mut new = Vec::new();
        self.offset += file.take(MAX_READ).read_to_end(&mut new).ok()? as u64;
        self.partial.extend_from_slice(&new);
        self.take_lines()
    }

    fn take_lines(&mut self) -> Option<Progress> {
        let mut newest = None;
        while let Some(end) = self.partial.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            if let Some(progress) = parse(&line, &self.mask) {
                self.note(&progress);
                newest = Some(progress);
            }
        }
        if self.partial.len() > MAX_LINE {
            self.partial.clear();
        }
        newest
    }

    fn note(&mut self, progress: &Progress) {
        let Some(stage) = &progress.stage else { return };
        if self.stages.last().is_some_and(|last| last.stage == *stage) || self.stages.len() >= MAX_STAGES {
            return;
        }
        let entry =
            StageEntry { stage: stage.clone(), pct: progress.pct.unwrap_or(0.0), at: Time::now(), message: progress.message.clone() };
        self.stages.push(entry);
    }

    /// The task's own stages, in order.
    pub fn take_stages(&mut self) -> Vec<StageEntry> {
        std::mem::take(&mut self.stages)
    }
}

/// A line that is no report is ignored: progress is a courtesy, not a result.
fn parse(line: &[u8], mask: &Masker) -> Option<Progress> {
    let mut progress: Progress = serde_json::from_slice(line).ok()?;
    progress.pct = progress.pct.filter(|p| p.is_finite()).map(|p| p.clamp(0.0, 100.0));
    for text in [&mut progress.stage, &mut progress.message].into_iter().flatten() {
        // Before it is cut: half a secret is not found.
        mask.text(text);
        if text.len() > MAX_TEXT {
            text.truncate(text.floor_char_boundary(MAX_TEXT));
        }
    }
    (progress != Progress { stage: None, pct: None, message: None }).then_some(progress)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_followed_as_they_are_completed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("progress");
        let mut file = ProgressFile::new(path.clone(), Masker::default());
        assert_eq!(file.look(), None);
        std::fs::write(&path, "{\"stage\":\"LOAD\",\"pct\":10}\n{\"stage\":\"FIT\",\"pct\":400}\n{\"pct\"").unwrap();
        let progress = file.look().unwrap();
        assert_eq!((progress.stage.as_deref(), progress.pct), (Some("FIT"), Some(100.0)));
        std::fs::write(&path, "{\"stage\":\"LOAD\",\"pct\":10}\n{\"stage\":\"FIT\",\"pct\":400}\n{\"pct\":50}\nnonsense\n").unwrap();
        assert_eq!(file.look().unwrap().pct, Some(50.0));
        assert_eq!(file.take_stages().iter().map(|s| s.stage.as_str()).collect::<Vec<_>>(), ["LOAD", "FIT"]);
    }
}
