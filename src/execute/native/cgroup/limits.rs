//! Setting limits through `cgroups-rs` and reading every one of them back. The only file that names that crate.
//!
//! Its `apply()` answers Ok although a limit was not set (measured: memory limit refused with EINVAL, and
//! memory directory missing), so only its direct setters are used, each followed by a read of our own.
//! `memory.oom.group` it does not know; its I/O setters cannot say that a device is unknown, but the read back does.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cgroups_rs::fs::MaxValue;
use cgroups_rs::fs::blkio::BlkIoController;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;

use super::files;
use super::layout::Controller;
use crate::supervisor::protocol::SpawnError;
use crate::task::limits::{IoLimits, Limits};

/// One hierarchy's directory of a task.
pub(super) struct Target<'a> {
    /// Descriptor of the directory.
    pub dir: BorrowedFd<'a>,
    /// Its path, as `cgroups-rs` works by path.
    pub path: PathBuf,
    /// cgroup2.
    pub v2: bool,
    /// What it carries.
    pub carries: &'a [Controller],
    /// What memory limits are counted in.
    pub page_bytes: u64,
    /// Out of memory the kernel kills everything in it, not one process.
    pub whole: bool,
}

/// Default period of the CPU controller; quotas below its minimum of 1 ms need the longest one.
const PERIOD_US: u64 = 100_000;
const LONG_PERIOD_US: u64 = 1_000_000;
const MIN_QUOTA_US: u64 = 1_000;

/// Sets what this hierarchy carries and reads it back.
pub(super) fn set(target: &Target<'_>, limits: &Limits, io_device: Option<(u32, u32)>) -> Result<(), SpawnError> {
    for controller in target.carries {
        match controller {
            Controller::Cpu => cpu(target, limits.cpus)?,
            Controller::Memory => memory(target, limits.memory_bytes)?,
            Controller::Pids => pids(target, limits.pids)?,
            Controller::Io => {
                if let (Some(io), Some(device)) = (&limits.io, io_device) {
                    block_io(target, io, device)?;
                }
            }
            Controller::Cpuacct => {}
        }
    }
    Ok(())
}

fn refused(limit: &str, error: impl ToString) -> SpawnError {
    SpawnError::Limit { limit: limit.to_owned(), error: error.to_string() }
}

/// The crate says which file it wrote, the kernel's answer is in the source.
fn with_cause(limit: &'static str) -> impl Fn(cgroups_rs::fs::error::Error) -> SpawnError {
    move |error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        refused(limit, cause.unwrap_or_else(|| error.to_string()))
    }
}

fn read_back(target: &Target<'_>, limit: &str, expected: &str) -> Result<(), SpawnError> {
    let found = files::read(target.dir, limit).map_err(|e| refused(limit, e))?;
    let found = found.trim();
    if found == expected { Ok(()) } else { Err(refused(limit, format!("reads back {found:?} instead of {expected:?}"))) }
}

/// Quota and period for `cpus`, exact to 10 µs per 100 ms.
fn quota(cpus: f64) -> Result<(u64, u64), SpawnError> {
    if !cpus.is_finite() || cpus <= 0.0 || cpus > 65_536.0 {
        return Err(refused("cpu quota", format!("{cpus} CPUs is not a limit")));
    }
    let period = if cpus * PERIOD_US as f64 >= MIN_QUOTA_US as f64 { PERIOD_US } else { LONG_PERIOD_US };
    let quota = (cpus * period as f64).round() as u64;
    Ok((quota.max(MIN_QUOTA_US), period))
}

fn cpu(target: &Target<'_>, cpus: f64) -> Result<(), SpawnError> {
    let (quota, period) = quota(cpus)?;
    let signed = i64::try_from(quota).map_err(|e| refused("cpu quota", e))?;
    let controller = CpuController::new(target.path.clone(), target.path.clone(), target.v2);
    if target.v2 {
        controller.set_cfs_quota_and_period(Some(signed), Some(period)).map_err(with_cause("cpu.max"))?;
        return read_back(target, "cpu.max", &format!("{quota} {period}"));
    }
    if period != PERIOD_US {
        controller.set_cfs_period(period).map_err(with_cause("cpu.cfs_period_us"))?;
    }
    controller.set_cfs_quota(signed).map_err(with_cause("cpu.cfs_quota_us"))?;
    read_back(target, "cpu.cfs_quota_us", &quota.to_string())?;
    read_back(target, "cpu.cfs_period_us", &period.to_string())
}

fn memory(target: &Target<'_>, bytes: u64) -> Result<(), SpawnError> {
    let (file, swap) = if target.v2 { ("memory.max", "memory.swap.max") } else { ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes") };
    let page = target.page_bytes;
    // The kernel counts whole pages and rounds down.
    let expected = bytes / page * page;
    let signed = i64::try_from(bytes).map_err(|e| refused(file, e))?;
    if expected == 0 {
        return Err(refused(file, format!("{bytes} bytes is less than a page")));
    }
    let controller = MemController::new(target.path.clone(), target.path.clone(), target.v2);
    // Memory first: in a fresh version 1 cgroup memsw is unlimited and may never be below the limit of memory.
    controller.set_limit(signed).map_err(with_cause(file))?;
    read_back(target, file, &expected.to_string())?;
    let swap_value = if target.v2 { 0 } else { signed };
    match controller.set_memswap_limit(swap_value) {
        Ok(()) => read_back(target, swap, &(if target.v2 { 0 } else { expected }).to_string())?,
        // No swap accounting. The site refused to work on a machine that has swap and cannot account for it.
        Err(_) if files::read(target.dir, swap).is_err_and(|e| e.kind() == io::ErrorKind::NotFound) => {}
        Err(error) => return Err(with_cause(if target.v2 { "memory.swap.max" } else { "memory.memsw.limit_in_bytes" })(error)),
    }
    if target.v2 && target.whole {
        files::write(target.dir, "memory.oom.group", "1").map_err(|e| refused("memory.oom.group", e))?;
        read_back(target, "memory.oom.group", "1")?;
    }
    Ok(())
}

fn pids(target: &Target<'_>, pids: u64) -> Result<(), SpawnError> {
    let signed = i64::try_from(pids).map_err(|e| refused("pids.max", e))?;
    let controller = PidController::new(target.path.clone(), target.path.clone(), target.v2);
    controller.set_pid_max(MaxValue::Value(signed)).map_err(with_cause("pids.max"))?;
    read_back(target, "pids.max", &pids.to_string())
}

fn block_io(target: &Target<'_>, io: &IoLimits, (major, minor): (u32, u32)) -> Result<(), SpawnError> {
    let controller = BlkIoController::new(target.path.clone(), target.path.clone(), target.v2);
    let (ma, mi) = (u64::from(major), u64::from(minor));
    let device = format!("{major}:{minor}");
    if let Some(rate) = io.read_bytes_per_s {
        controller.throttle_read_bps_for_device(ma, mi, rate).map_err(with_cause("io read bytes"))?;
        rate_reads_back(target, "blkio.throttle.read_bps_device", &device, "rbps", rate)?;
    }
    if let Some(rate) = io.write_bytes_per_s {
        controller.throttle_write_bps_for_device(ma, mi, rate).map_err(with_cause("io write bytes"))?;
        rate_reads_back(target, "blkio.throttle.write_bps_device", &device, "wbps", rate)?;
    }
    if let Some(rate) = io.read_ops_per_s {
        controller.throttle_read_iops_for_device(ma, mi, rate).map_err(with_cause("io read operations"))?;
        rate_reads_back(target, "blkio.throttle.read_iops_device", &device, "riops", rate)?;
    }
    if let Some(rate) = io.write_ops_per_s {
        controller.throttle_write_iops_for_device(ma, mi, rate).map_err(with_cause("io write operations"))?;
        rate_reads_back(target, "blkio.throttle.write_iops_device", &device, "wiops", rate)?;
    }
    Ok(())
}

fn rate_reads_back(target: &Target<'_>, v1_file: &str, device: &str, v2_key: &str, rate: u64) -> Result<(), SpawnError> {
    let file = if target.v2 { "io.max" } else { v1_file };
    let text = files::read(target.dir, file).map_err(|e| refused(file, e))?;
    let line = text.lines().find_map(|l| l.strip_prefix(device)?.strip_prefix(' ')).unwrap_or_default();
    let expected = if target.v2 { format!("{v2_key}={rate}") } else { rate.to_string() };
    if line.split(' ').any(|field| field == expected) {
        Ok(())
    } else {
        Err(refused(file, format!("device {device} reads back {line:?} instead of {expected:?}")))
    }
}

/// The whole disk that holds `directory`.
///
/// # Errors
/// When it is on no block device of its own (tmpfs, overlay, btrfs subvolume): such a limit would not hold.
pub(super) fn device_of(directory: &Path) -> Result<(u32, u32), SpawnError> {
    let meta =
        std::fs::metadata(directory).map_err(|e| SpawnError::WorkingDir { path: directory.display().to_string(), error: e.to_string() })?;
    let (major, minor) = (rustix::fs::major(meta.st_dev()), rustix::fs::minor(meta.st_dev()));
    let sys = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    if !sys.exists() {
        return Err(refused("io", format!("{} is not on a block device ({major}:{minor})", directory.display())));
    }
    if !sys.join("partition").exists() {
        return Ok((major, minor));
    }
    // Throttling works on whole disks; a partition's directory lies inside its disk's.
    let text = std::fs::read_to_string(sys.join("../dev")).map_err(|e| refused("io", e))?;
    let parsed = text.trim().split_once(':').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    parsed.ok_or_else(|| refused("io", format!("disk of partition {major}:{minor} is not known")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_respect_the_kernels_minimum() {
        for (cpus, expected) in [
            (1.0, (100_000, 100_000)),
            (0.5, (50_000, 100_000)),
            (0.01, (1_000, 100_000)),
            (0.005, (5_000, 1_000_000)),
            (0.0001, (1_000, 1_000_000)),
        ] {
            assert_eq!(quota(cpus), Ok(expected), "{cpus}");
        }
        for cpus in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(quota(cpus).is_err(), "{cpus}");
        }
    }
}
