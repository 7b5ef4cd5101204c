//! Setting limits by `cgroups_rs`, and reading every one of them back.

use std::path::Path;

use cgroups_rs::fs::MaxValue;
use cgroups_rs::fs::blkio::BlkIoController;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;

use super::{Controller, read, write};
use crate::supervisor::protocol::SpawnError;
use crate::task::{IoLimits, Limits};

/// Period of the CPU quota, microseconds: the kernel's default.
const PERIOD_US: u64 = 100_000;
/// Smallest quota that the kernel takes, microseconds.
const MIN_QUOTA_US: u64 = 1_000;
/// The kernel rounds memory limits down to whole pages; no machine here has larger ones.
const LARGEST_PAGE: u64 = 65_536;

fn failed(limit: &Path, error: impl std::fmt::Display) -> SpawnError {
    SpawnError::Limit { limit: limit.display().to_string(), error: error.to_string() }
}

/// Sets the limit that `controller` is for in `dir`.
///
/// # Errors
/// When it cannot be set or does not read back.
pub(super) fn set(dir: &Path, v2: bool, controller: Controller, limits: &Limits, device: Option<(u64, u64)>) -> Result<(), SpawnError> {
    match controller {
        Controller::Cpu => cpu(dir, v2, limits.cpus),
        Controller::Memory => memory(dir, v2, limits.memory_bytes),
        Controller::Pids => pids(dir, v2, limits.pids),
        Controller::Io => match (limits.io, device) {
            (None, _) => Ok(()),
            (Some(io), Some(device)) => self::io(dir, v2, io, device),
            (Some(_), None) => Err(failed(dir, "the work directory is on no block device that could be limited")),
        },
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "checked by plan to be a small positive number"
)]
fn cpu(dir: &Path, v2: bool, cpus: f64) -> Result<(), SpawnError> {
    let quota = ((cpus * PERIOD_US as f64).round() as u64).max(MIN_QUOTA_US);
    if v2 {
        let file = dir.join("cpu.max");
        write(&file, &format!("{quota} {PERIOD_US}")).map_err(|e| failed(&file, e))?;
        return expect(&file, &format!("{quota} {PERIOD_US}"));
    }
    let file = dir.join("cpu.cfs_quota_us");
    let quota_us = i64::try_from(quota).unwrap_or(i64::MAX);
    CpuController::new(dir.to_owned(), dir.to_owned(), false).set_cfs_quota(quota_us).map_err(|e| failed(&file, e))?;
    // The period of a new group is the default; the quota says nothing without it.
    expect(&file, &quota.to_string())?;
    expect(&dir.join("cpu.cfs_period_us"), &PERIOD_US.to_string())
}

fn memory(dir: &Path, v2: bool, bytes: u64) -> Result<(), SpawnError> {
    let limit = i64::try_from(bytes).unwrap_or(i64::MAX);
    let controller = MemController::new(dir.to_owned(), dir.to_owned(), v2);
    let file = dir.join(if v2 { "memory.max" } else { "memory.limit_in_bytes" });
    controller.set_limit(limit).map_err(|e| failed(&file, e))?;
    expect_bytes(&file, bytes)?;
    // Swap, where the kernel counts it. In v1 the limit is that of memory and swap together, set after that of memory.
    let swap = dir.join(if v2 { "memory.swap.max" } else { "memory.memsw.limit_in_bytes" });
    if swap.exists() {
        controller.set_memswap_limit(if v2 { 0 } else { limit }).map_err(|e| failed(&swap, e))?;
        expect_bytes(&swap, if v2 { 0 } else { bytes })?;
    }
    if v2 {
        // One process killed for memory means that the task is killed, not a random half of it.
        let file = dir.join("memory.oom.group");
        write(&file, "1").map_err(|e| failed(&file, e))?;
        expect(&file, "1")?;
    }
    Ok(())
}

fn pids(dir: &Path, v2: bool, pids: u64) -> Result<(), SpawnError> {
    let file = dir.join("pids.max");
    let max = i64::try_from(pids).unwrap_or(i64::MAX);
    PidController::new(dir.to_owned(), dir.to_owned(), v2).set_pid_max(MaxValue::Value(max)).map_err(|e| failed(&file, e))?;
    expect(&file, &max.to_string())
}

fn io(dir: &Path, v2: bool, io: IoLimits, (major, minor): (u64, u64)) -> Result<(), SpawnError> {
    let controller = BlkIoController::new(dir.to_owned(), dir.to_owned(), v2);
    type Set = fn(&BlkIoController, u64, u64, u64) -> cgroups_rs::fs::error::Result<()>;
    let limits: [(Option<u64>, &str, &str, Set); 4] = [
        (io.read_bytes_per_s, "blkio.throttle.read_bps_device", "rbps", BlkIoController::throttle_read_bps_for_device),
        (io.write_bytes_per_s, "blkio.throttle.write_bps_device", "wbps", BlkIoController::throttle_write_bps_for_device),
        (io.read_ops_per_s, "blkio.throttle.read_iops_device", "riops", BlkIoController::throttle_read_iops_for_device),
        (io.write_ops_per_s, "blkio.throttle.write_iops_device", "wiops", BlkIoController::throttle_write_iops_for_device),
    ];
    for (value, v1_name, v2_key, set) in limits {
        let Some(value) = value else { continue };
        let file = dir.join(if v2 { "io.max" } else { v1_name });
        set(&controller, major, minor, value).map_err(|e| failed(&file, e))?;
        let text = read(&file).map_err(|e| failed(&file, e))?;
        let device = format!("{major}:{minor} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&device)).unwrap_or_default();
        let found = if v2 { line.split(' ').any(|pair| pair == format!("{v2_key}={value}")) } else { line.trim() == value.to_string() };
        if !found {
            return Err(failed(&file, format!("reads back {line:?} instead of {value} for device {major}:{minor}")));
        }
    }
    Ok(())
}

fn expect(file: &Path, value: &str) -> Result<(), SpawnError> {
    let found = read(file).map_err(|e| failed(file, e))?;
    if found.trim() == value { Ok(()) } else { Err(failed(file, format!("reads back {:?} instead of {value:?}", found.trim()))) }
}

fn expect_bytes(file: &Path, bytes: u64) -> Result<(), SpawnError> {
    let text = read(file).map_err(|e| failed(file, e))?;
    let found: Option<u64> = text.trim().parse().ok();
    match found {
        Some(found) if found <= bytes && bytes - found < LARGEST_PAGE => Ok(()),
        Some(_) | None => Err(failed(file, format!("reads back {:?} instead of {bytes}", text.trim()))),
    }
}
