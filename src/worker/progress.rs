//! `WINDLASS_PROGRESS`: lines that a task appends, followed while it runs.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::sync::Arc;

use serde_json::Value;

use super::result;
use crate::mask::Masker;
use crate::prepare::{Inside, PROGRESS};
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
    inside: Arc<Inside>,
    offset: u64,
    partial: Vec<u8>,
    /// Within a line that was too long: up to its end nothing counts.
    skipping: bool,
    stages: Vec<StageEntry>,
    mask: Masker,
}

impl ProgressFile {
    /// Follows the progress file of `inside`, which need not exist yet.
    #[must_use]
    pub fn new(inside: Arc<Inside>, mask: Masker) -> Self {
        Self { inside, offset: 0, partial: Vec::new(), skipping: false, stages: Vec::new(), mask }
    }

    /// What was written since the last look: the newest report, if there is one. Cancel safe: what was read and not taken is
    /// read again.
    pub async fn look(&mut self) -> Option<Progress> {
        let (inside, offset) = (Arc::clone(&self.inside), self.offset);
        // A disk, or what a task put in its place, may take its time; never on a thread that others wait for.
        let new = tokio::task::spawn_blocking(move || read_from(&inside, offset)).await.ok()??;
        self.take(&new)
    }

    /// The last look, when nobody writes any more, and the task's result: one way to the disk for both.
    ///
    /// # Errors
    /// What is wrong with the result.
    pub async fn end(&mut self) -> Result<Option<Value>, String> {
        let (inside, offset) = (Arc::clone(&self.inside), self.offset);
        let read = tokio::task::spawn_blocking(move || (read_from(&inside, offset), result::read(&inside)));
        let (new, result) = read.await.unwrap_or_else(|error| (None, Err(format!("the result cannot be read: {error}"))));
        if let Some(new) = new {
            self.take(&new);
        }
        result
    }

    fn take(&mut self, new: &[u8]) -> Option<Progress> {
        self.offset += new.len() as u64;
        let mut newest = None;
        let mut rest = new;
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            let (line, after) = rest.split_at(end + 1);
            rest = after;
            self.add(line);
            let line = std::mem::take(&mut self.partial);
            if let Some(progress) = parse(&line, &self.mask).filter(|_| !self.skipping) {
                self.note(&progress);
                newest = Some(progress);
            }
            self.skipping = false;
        }
        self.add(rest);
        newest
    }

    fn add(&mut self, part: &[u8]) {
        self.skipping |= self.partial.len() + part.len() > MAX_LINE;
        if self.skipping {
            self.partial.clear();
        } else {
            self.partial.extend_from_slice(part);
        }
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

/// What there is from `offset` on, as much as is taken at one look. Blocks on the disk.
fn read_from(inside: &Inside, offset: u64) -> Option<Vec<u8>> {
    let mut file = inside.file(PROGRESS).ok()??;
    file.seek(SeekFrom::Start(offset)).ok()?;
    let mut new = Vec::new();
    file.take(MAX_READ).read_to_end(&mut new).ok()?;
    Some(new)
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
    use std::fs;

    use super::*;

    fn file() -> (tempfile::TempDir, std::path::PathBuf, ProgressFile) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(PROGRESS);
        let file = ProgressFile::new(Arc::new(Inside::open(dir.path()).unwrap()), Masker::default());
        (dir, path, file)
    }

    #[tokio::test]
    async fn lines_are_followed_as_they_are_completed() {
        let (_dir, path, mut file) = file();
        assert_eq!(file.look().await, None);
        fs::write(&path, "{\"stage\":\"LOAD\",\"pct\":10}\n{\"stage\":\"FIT\",\"pct\":400}\n{\"pct\"").unwrap();
        let progress = file.look().await.unwrap();
        assert_eq!((progress.stage.as_deref(), progress.pct), (Some("FIT"), Some(100.0)));
        fs::write(&path, "{\"stage\":\"LOAD\",\"pct\":10}\n{\"stage\":\"FIT\",\"pct\":400}\n{\"pct\":50}\nnonsense\n").unwrap();
        assert_eq!(file.look().await.unwrap().pct, Some(50.0));
        assert_eq!(file.take_stages().iter().map(|s| s.stage.as_str()).collect::<Vec<_>>(), ["LOAD", "FIT"]);
    }

    #[tokio::test]
    async fn a_line_without_end_is_skipped_and_grows_nothing() {
        let (_dir, path, mut file) = file();
        // Whole and valid, and too long; then one that hides in the end of another.
        let long = format!("{{\"pct\":1,\"message\":\"{}\"}}\n", "x".repeat(20_000));
        let endless = format!("{}{{\"pct\":2}}\n", "y".repeat(1 << 20));
        fs::write(&path, [long.as_str(), &endless, "{\"pct\":3}\n"].concat()).unwrap();
        let mut seen = Vec::new();
        for _ in 0..8 {
            seen.extend(file.look().await.and_then(|p| p.pct));
            assert!(file.partial.len() <= MAX_LINE);
        }
        assert_eq!(seen, [3.0]);
    }

    #[tokio::test]
    async fn what_is_no_report_is_ignored() {
        let (_dir, path, mut file) = file();
        let deep = format!("{{\"pct\":9,\"x\":{}{}}}", "[".repeat(4000), "]".repeat(4000));
        let lines = ["{\"pct\":\"NaN\"}", "{\"pct\":1e999}", "[1]", "\u{0}", "{}", "{\"stage\":7}", "\"x\""];
        fs::write(&path, lines.join("\n") + "\n").unwrap();
        assert_eq!(file.look().await, None);
        // Deeper than any reader goes, and nothing of it is kept.
        fs::write(&path, format!("{}\n{deep}\n", lines.join("\n"))).unwrap();
        assert_eq!(file.look().await.unwrap().pct, Some(9.0));
        // As short as lines can be, as many as are read: their number must not cost more than their bytes.
        fs::write(&path, "\n".repeat(MAX_READ as usize)).unwrap();
        assert_eq!(file.look().await, None);
        fs::write(&path, "").unwrap();
        assert_eq!(file.look().await, None, "a file that shrank has nothing new");
    }

    #[tokio::test]
    async fn nothing_but_a_plain_file_is_followed() {
        let (dir, path, mut file) = file();
        let secret = dir.path().join("secret");
        fs::write(&secret, "{\"message\":\"secret\"}\n").unwrap();
        std::os::unix::fs::symlink(&secret, &path).unwrap();
        assert_eq!(file.look().await, None);
        fs::remove_file(&path).unwrap();
        fs::hard_link(&secret, &path).unwrap();
        assert_eq!(file.look().await, None);
        fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        assert_eq!(file.look().await, None);
        fs::remove_file(&path).unwrap();
        let sparse = fs::File::create(&path).unwrap();
        sparse.set_len(1 << 40).or_else(|_| sparse.set_len(1 << 33)).unwrap();
        for _ in 0..3 {
            assert_eq!(file.look().await, None);
        }
        assert_eq!((file.offset, file.partial.len()), (3 * MAX_READ, 0));
    }
}
