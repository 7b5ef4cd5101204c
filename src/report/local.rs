//! Copies of output in files of this machine, for people who look there. Never in the way of the task: what fails here
//! is logged once.

use std::fs::{self, DirEntry, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::lane::Record;
use crate::task::{ByteSize, TaskId, Tenant};

/// Where local copies go; `[logs]` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalLogs {
    /// Directory; files are `<dir>/<tenant>/<task_id>.<attempt>.log`.
    pub dir: PathBuf,
    /// Size at which a file is rotated.
    pub file_max: ByteSize,
    /// Rotated files that are kept, `.1` the newest.
    pub file_keep: u32,
}

/// The copy of one attempt: the bytes of both streams as they were observed. Its file appears with the first of them.
#[derive(Debug)]
pub(super) struct LocalLog {
    config: LocalLogs,
    path: PathBuf,
    file: Option<(File, u64)>,
    broken: bool,
}

impl LocalLog {
    pub(super) fn new(config: LocalLogs, tenant: &Tenant, task_id: &TaskId, attempt: u32) -> Self {
        let path = config.dir.join(tenant.as_str()).join(format!("{task_id}.{attempt}.log"));
        Self { config, path, file: None, broken: false }
    }

    /// Appends. Blocks on the disk.
    pub(super) fn append(&mut self, records: &[Record]) {
        for record in records {
            if self.broken {
                return;
            }
            if let Err(e) = self.write(&record.data) {
                tracing::warn!(path = %self.path.display(), error = %e, "local copy of output ends here");
                self.broken = true;
            }
        }
    }

    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        let (mut file, size) = match self.file.take() {
            Some((_, size)) if size > 0 && size + data.len() as u64 > self.config.file_max.bytes() => {
                self.rotate()?;
                self.open()?
            }
            Some(open) => open,
            None => self.open()?,
        };
        file.write_all(data)?;
        self.file = Some((file, size + data.len() as u64));
        Ok(())
    }

    fn open(&self) -> io::Result<(File, u64)> {
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
        if let Some(dir) = self.path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o750).create(dir)?;
        }
        // A link in its place is somebody's trick: the worker may write where its author may not.
        let nofollow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        let file = File::options().append(true).create(true).mode(0o640).custom_flags(nofollow).open(&self.path)?;
        let size = file.metadata()?.len();
        Ok((file, size))
    }

    /// `.log` becomes `.log.1`, that `.log.2`; the last one goes.
    fn rotate(&self) -> io::Result<()> {
        let keep = self.config.file_keep;
        if keep == 0 {
            return fs::remove_file(&self.path);
        }
        for number in (1..keep).rev() {
            match fs::rename(self.rotated(number), self.rotated(number + 1)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        fs::rename(&self.path, self.rotated(1))
    }

    fn rotated(&self, number: u32) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(format!(".{number}"));
        path.into()
    }
}

/// What [`prune`] removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pruned {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Removes local copies below `dir`: all that were last written more than `max_age` ago, and then the oldest until the
/// rest is `max_total` at most. Other files are left alone. Blocks on the disk.
///
/// # Errors
/// When a directory cannot be listed or a file not removed; a file that is gone already is fine.
pub fn prune(dir: &Path, max_age: Duration, max_total: ByteSize) -> io::Result<Pruned> {
    let mut files = Vec::new();
    for tenant in entries(dir)? {
        if tenant.file_type()?.is_dir() {
            for file in entries(&tenant.path())?.iter().filter(|file| is_copy(file)) {
                // Gone since it was listed: rotated away.
                if let Ok(meta) = file.metadata()
                    && meta.is_file()
                {
                    files.push((meta.modified()?, meta.len(), file.path()));
                }
            }
        }
    }
    files.sort();
    let mut total: u64 = files.iter().map(|(_, len, _)| len).sum();
    let now = SystemTime::now();
    let mut pruned = Pruned::default();
    for (modified, len, path) in files {
        let old = now.duration_since(modified).is_ok_and(|age| age > max_age);
        if !old && total <= max_total.bytes() {
            break;
        }
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        total -= len;
        pruned = Pruned { files: pruned.files + 1, bytes: pruned.bytes + len };
    }
    Ok(pruned)
}

fn entries(dir: &Path) -> io::Result<Vec<DirEntry>> {
    match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed?.collect(),
    }
}

/// True for `*.log` and `*.log.<number>`.
fn is_copy(file: &DirEntry) -> bool {
    let name = file.file_name();
    let Some(name) = name.to_str() else { return false };
    let number = |suffix: &str| !suffix.is_empty() && suffix.bytes().all(|b| b.is_ascii_digit());
    name.ends_with(".log") || name.rsplit_once(".log.").is_some_and(|(_, suffix)| number(suffix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Time;
    use crate::task::log_chunk::LogStream;

    fn log(dir: &Path, file_keep: u32) -> LocalLog {
        let config = LocalLogs { dir: dir.to_owned(), file_max: ByteSize(10), file_keep };
        LocalLog::new(config, &Tenant::new("acme").expect("token"), &TaskId::new("t1").expect("token"), 2)
    }

    fn record(data: &'static str) -> Record {
        Record { stream: LogStream::Stdout, time: Time::now(), data: data.into() }
    }

    #[test]
    fn files_are_rotated_before_they_exceed_their_size() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut two = log(dir.path(), 2);
        two.append(&["aaaaaa", "bbbb", "cc", "dddddddd", "a record longer than a file", "e"].map(record));
        let read = |name: &str| fs::read_to_string(dir.path().join("acme").join(name)).ok();
        assert_eq!(read("t1.2.log").as_deref(), Some("e"));
        assert_eq!(read("t1.2.log.1").as_deref(), Some("a record longer than a file"));
        assert_eq!(read("t1.2.log.2").as_deref(), Some("ccdddddddd"));
        assert_eq!(read("t1.2.log.3"), None, "aaaaaabbbb is gone");
        fs::remove_dir_all(dir.path().join("acme")).expect("remove");
        let mut none = log(dir.path(), 0);
        none.append(&["aaaaaa", "bbbbbb"].map(record));
        assert_eq!(read("t1.2.log").as_deref(), Some("bbbbbb"));
        assert_eq!(read("t1.2.log.1"), None);
    }

    #[test]
    fn a_failure_ends_the_copy_and_nothing_else() {
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::write(dir.path().join("acme"), "a file where the directory should be").expect("write");
        let mut copy = log(dir.path(), 1);
        copy.append(&["a", "b"].map(record));
        assert!(copy.broken);
    }

    #[test]
    fn a_link_in_place_of_the_copy_is_not_written_through() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let precious = dir.path().join("precious");
        fs::write(&precious, "x").expect("write");
        fs::create_dir(dir.path().join("acme")).expect("create");
        std::os::unix::fs::symlink(&precious, dir.path().join("acme/t1.2.log")).expect("link");
        let mut copy = log(dir.path(), 1);
        copy.append(&["a"].map(record));
        assert!(copy.broken);
        assert_eq!(fs::read_to_string(&precious).expect("read"), "x");
    }

    #[test]
    fn pruning_removes_by_age_and_then_the_oldest_beyond_the_total() {
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::create_dir(dir.path().join("acme")).expect("create");
        let now = SystemTime::now();
        for (name, hours) in [("a.1.log", 50), ("b.1.log.1", 5), ("c.1.log", 4), ("d.1.log", 3), ("e.1.log", 2), ("keep.txt", 99)] {
            let path = dir.path().join("acme").join(name);
            fs::write(&path, "0123456789").expect("write");
            let file = File::options().write(true).open(&path).expect("open");
            file.set_modified(now - Duration::from_secs(hours * 3600)).expect("set time");
        }
        let day = Duration::from_secs(24 * 3600);
        assert_eq!(prune(dir.path(), day, ByteSize(25)).expect("prune"), Pruned { files: 3, bytes: 30 });
        let mut left: Vec<_> = entries(&dir.path().join("acme")).expect("list").iter().map(DirEntry::file_name).collect();
        left.sort();
        assert_eq!(left, ["d.1.log", "e.1.log", "keep.txt"]);
        assert_eq!(prune(&dir.path().join("absent"), day, ByteSize(0)).expect("nothing there"), Pruned::default());
    }
}
