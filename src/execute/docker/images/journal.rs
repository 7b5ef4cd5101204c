//! Which of the engine's images Windlass pulled, when each was used last, and who uses one right now.
//!
//! ```text
//! <state_dir>/images/<engine>/          of the engine at that address
//!   lock                                one worker makes room at a time
//!   pending/<digest of the reference>   locked by those who pull: the reference, and what it was before
//!   <image id>                          locked by those who use it: what Windlass pulled it as; its time is that of the last use
//! ```
//! Engines keep no such record: a pulled image carries no label of ours. So it is kept beside them, on the disk of the machine, by the
//! workers that share a state directory. What is not in here is somebody else's, and stays. Locks are the kernel's, and end with
//! their process. A pull whose worker died is found by its file: what its reference names now, and did not before, was
//! pulled by it. An empty record is one of an image that was removed: who got hold of it too late sees that, and looks again.
//!
//! Everything in here is best effort: without it images are pulled and run, and none is removed.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bollard::models::ImageInspect;

use super::{address, digests};
use crate::task::ImageRef;
use crate::telemetry::{causes, spawn_blocking};
use crate::wire::sha256_hex;

/// How long the record of a removed image is kept for those that are late.
const LATE: Duration = Duration::from_secs(3600);
/// Longest record that is read, bytes.
const LONGEST: u64 = 1 << 20;
/// Lines of a pull that is under way.
const LINES: usize = 2;
/// Ends half a line, so that it names nothing.
const BROKEN: &str = "?\n";

/// The record of one engine's images.
#[derive(Debug, Clone)]
pub(in super::super) struct Journal {
    dir: PathBuf,
}

/// While it is held nobody removes the image to make room.
#[derive(Debug)]
pub(in super::super) struct Hold {
    record: File,
}

/// The image was removed at that moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Gone;

/// An image in the journal.
#[derive(Debug)]
pub(in super::super) struct Entry {
    /// `sha256:…`
    pub id: String,
    /// Last use.
    pub used: SystemTime,
    path: PathBuf,
}

/// A pull that is under way.
#[derive(Debug)]
pub(super) struct Pending {
    file: Option<(PathBuf, File)>,
    before: Option<String>,
}

/// A pull whose worker has died.
#[derive(Debug)]
pub(in super::super) struct Abandoned {
    /// What was pulled.
    pub reference: ImageRef,
    /// Id of the image of that name before.
    pub before: Option<String>,
    path: PathBuf,
    _lock: File,
}

/// An image that nobody uses, for as long as this is held.
#[derive(Debug)]
pub(in super::super) struct Unused {
    /// What Windlass pulled it as.
    pub references: Vec<String>,
    record: File,
}

impl Journal {
    /// The one of the engine at `host` in that state directory. Nothing is made yet.
    pub fn new(state_dir: &Path, host: &str) -> Self {
        Self { dir: state_dir.join("images").join(&sha256_hex(host.as_bytes())[..12]) }
    }

    /// Marks the image as used now and holds it; none for one that is not Windlass's.
    pub async fn hold(&self, id: &str) -> Result<Option<Hold>, Gone> {
        let path = self.record(id);
        let held = spawn_blocking(move || hold(&path)).await.unwrap_or_else(|error| Err(error.into()));
        held.unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(error = %causes(&error), id, "cannot hold an image");
            }
            Ok(None)
        })
    }

    /// Notes that `image` is about to be pulled, which is `before` now.
    pub(super) async fn begin(&self, image: &ImageRef, before: Option<&str>) -> Pending {
        let reference = address(image);
        let path = self.dir.join("pending").join(sha256_hex(reference.as_bytes()));
        let text = format!("{reference}\n{}\n", before.unwrap_or_default());
        let begun = spawn_blocking(move || begin(path, &text)).await.unwrap_or_else(|error| Err(error.into()));
        begun.unwrap_or_else(|error| {
            tracing::warn!(error = %causes(&error), reference, "cannot note a pull: the image will not be removed to make room");
            Pending { file: None, before: before.map(str::to_owned) }
        })
    }

    /// Notes that Windlass pulled `found` as `image`, and holds it.
    pub async fn pulled(&self, image: &ImageRef, found: &ImageInspect) -> Option<Hold> {
        let id = found.id.clone()?;
        let own = digests(image, found).into_iter().map(|digest| format!("{}@{digest}", image.name()));
        let references: Vec<String> = std::iter::once(address(image)).chain(own).collect();
        let path = self.record(&id);
        let noted = spawn_blocking(move || note(&path, &references)).await.unwrap_or_else(|error| Err(error.into()));
        noted
            .inspect_err(|error| tracing::warn!(error = %causes(error), id, "cannot note an image: it will not be removed to make room"))
            .ok()
    }

    /// Pulls whose workers have died.
    pub fn abandoned(&self) -> Vec<Abandoned> {
        let Ok(entries) = std::fs::read_dir(self.dir.join("pending")) else { return Vec::new() };
        entries.flatten().filter_map(|entry| abandoned(entry.path())).collect()
    }

    /// The images, the longest unused first. Forgets those that were removed long ago.
    pub fn entries(&self) -> Vec<Entry> {
        let Ok(files) = std::fs::read_dir(&self.dir) else { return Vec::new() };
        let mut entries: Vec<Entry> = files.flatten().filter_map(|file| entry(&file)).collect();
        entries.sort_by_key(|entry| entry.used);
        entries
    }

    /// Only one worker at a time makes room. Blocks.
    pub fn lock(&self) -> io::Result<File> {
        std::fs::create_dir_all(&self.dir)?;
        let lock = File::options().create(true).append(true).open(self.dir.join("lock"))?;
        lock.lock()?;
        Ok(lock)
    }

    fn record(&self, id: &str) -> PathBuf {
        // An id is one by the engine's word only.
        let hex: String = id.rsplit(':').next().unwrap_or_default().chars().filter(char::is_ascii_hexdigit).collect();
        self.dir.join(if hex.len() == 64 { hex } else { sha256_hex(id.as_bytes()) })
    }
}

fn hold(path: &Path) -> io::Result<Result<Option<Hold>, Gone>> {
    let record = File::options().read(true).append(true).open(path)?;
    // Who holds it alone removes the image, which takes as long as the engine does.
    record.lock_shared()?;
    if record.metadata()?.len() == 0 {
        return Ok(Err(Gone));
    }
    // A time that cannot be written is no reason to let go of it.
    let _ = record.set_modified(SystemTime::now());
    Ok(Ok(Some(Hold { record })))
}

fn begin(path: PathBuf, text: &str) -> io::Result<Pending> {
    std::fs::create_dir_all(path.parent().unwrap_or(&path))?;
    loop {
        let mut file = File::options().create(true).read(true).append(true).open(&path)?;
        file.lock_shared()?;
        // The one before may have removed it as it was opened.
        if std::os::unix::fs::MetadataExt::nlink(&file.metadata()?) == 0 {
            continue;
        }
        // Nothing yet, or what a full disk left of it.
        if read(&file)?.len() < LINES {
            file.set_len(0)?;
            file.write_all(text.as_bytes())?;
        }
        // What it was before the first of those who pull it now, or died as they did.
        let before = read(&file)?.get(1).filter(|id| !id.is_empty()).cloned();
        return Ok(Pending { file: Some((path, file)), before });
    }
}

fn note(path: &Path, references: &[String]) -> io::Result<Hold> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let mut record = File::options().create(true).read(true).append(true).open(path)?;
    record.lock_shared()?;
    let known = read(&record)?;
    let new: String = references.iter().filter(|new| !known.contains(new)).map(|new| format!("{new}\n")).collect();
    // Half a line before it would be one with it.
    let begin = if new.is_empty() || is_whole(&record)? { "" } else { BROKEN };
    record.write_all(format!("{begin}{new}").as_bytes())?;
    let _ = record.set_modified(SystemTime::now());
    Ok(Hold { record })
}

/// Its lines; half of one, of a worker that died as it wrote, is none.
fn read(file: &File) -> io::Result<Vec<String>> {
    let mut text = String::new();
    let mut from_start = file;
    io::Seek::seek(&mut from_start, io::SeekFrom::Start(0))?;
    from_start.take(LONGEST).read_to_string(&mut text)?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    Ok(whole.split('\n').map(str::to_owned).collect())
}

/// Whether its last line has an end.
fn is_whole(file: &File) -> io::Result<bool> {
    let length = file.metadata()?.len();
    let mut last = [b'\n'];
    if length > 0 {
        std::os::unix::fs::FileExt::read_exact_at(file, &mut last, length - 1)?;
    }
    Ok(last == [b'\n'])
}

fn abandoned(path: PathBuf) -> Option<Abandoned> {
    let lock = File::options().read(true).append(true).open(&path).ok()?;
    lock.try_lock().ok()?;
    let lines = read(&lock).ok()?;
    let (reference, before) = (lines.first()?.parse(), lines.get(1).filter(|id| !id.is_empty()).cloned());
    let (Ok(reference), LINES..) = (reference, lines.len()) else {
        // It died before it had written what it would pull and what was there before, and so before it pulled; or the disk was
        // full, and nobody knows any more whose the image is.
        let _ = std::fs::remove_file(&path);
        return None;
    };
    Some(Abandoned { reference, before, path, _lock: lock })
}

fn entry(file: &std::fs::DirEntry) -> Option<Entry> {
    let (path, metadata) = (file.path(), file.metadata().ok()?);
    let name = file.file_name().into_string().ok()?;
    if name.len() != 64 || !metadata.is_file() {
        return None;
    }
    let used = metadata.modified().ok()?;
    if metadata.len() == 0 {
        if used.elapsed().is_ok_and(|age| age > LATE) {
            let _ = std::fs::remove_file(&path);
        }
        return None;
    }
    Some(Entry { id: format!("sha256:{name}"), used, path })
}

impl Entry {
    /// Takes it out of use; none when somebody uses it.
    pub fn unused(&self) -> Option<Unused> {
        let record = File::options().read(true).append(true).open(&self.path).ok()?;
        record.try_lock().ok()?;
        let mut references = read(&record).ok()?;
        // What a full disk or a power cut left half is none.
        references.retain(|reference| reference.parse::<ImageRef>().is_ok());
        // Another worker was faster.
        (!references.is_empty()).then_some(Unused { references, record })
    }
}

impl Unused {
    /// The image was removed.
    pub fn removed(self) {
        if let Err(error) = self.record.set_len(0) {
            tracing::warn!(error = %causes(&error), "cannot forget a removed image");
        }
    }
}

impl Abandoned {
    /// It was looked after.
    pub fn settled(self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Pending {
    /// The pull came to nothing.
    pub(super) async fn fail(self) {
        self.settle().await;
    }

    /// The image is there: notes it if it was not before, and holds it.
    pub(super) async fn done(self, journal: &Journal, image: &ImageRef, found: &ImageInspect) -> Option<Hold> {
        let hold = if self.before.is_some() && self.before == found.id {
            // What was there before is Windlass's if the journal has it, and else somebody else's.
            journal.hold(found.id.as_deref().unwrap_or_default()).await.ok().flatten()
        } else {
            journal.pulled(image, found).await
        };
        self.settle().await;
        hold
    }

    /// While others pull the same it stays: theirs is the last word.
    async fn settle(self) {
        let Some((path, file)) = self.file else { return };
        let settled = spawn_blocking(move || match file.try_lock() {
            Ok(()) => std::fs::remove_file(&path),
            Err(_) => Ok(()),
        });
        if let Ok(Err(error)) = settled.await {
            tracing::warn!(error = %causes(&error), "cannot remove the note of a pull");
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // It was in use until now.
        let _ = self.record.set_modified(SystemTime::now());
    }
}

#[cfg(test)]
mod tests;
