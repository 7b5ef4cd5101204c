//! What this worker may give to tasks: slots, CPUs, memory. A permit is held before a message is asked for (invariant 5).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::config::{self, Class};
use crate::plan::Plan;
use crate::task::{ByteSize, ClassName};

/// An amount of this worker's means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Thousandths of a CPU.
    pub cpu_milli: u64,
    /// Bytes.
    pub memory: u64,
}

impl Need {
    /// What a task takes while it runs, its services included.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        let services = plan.container.iter().flat_map(|container| &container.services);
        let (cpus, memory) = services.fold((0.0, 0u64), |(cpus, memory), s| (cpus + s.cpus, memory.saturating_add(s.memory.bytes())));
        Self::new(plan.bounds.cpus.value + cpus, plan.bounds.memory.value.bytes().saturating_add(memory))
    }

    /// From CPUs and bytes.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be a small positive number by plan and configuration"
    )]
    pub fn new(cpus: f64, memory: u64) -> Self {
        Self { cpu_milli: (cpus * 1000.0).ceil() as u64, memory }
    }
}

#[derive(Debug)]
struct State {
    free_slots: u32,
    free: Need,
    class_slots: BTreeMap<ClassName, u32>,
}

/// The account of what is free.
#[derive(Debug)]
pub struct Capacity {
    total: Need,
    slots: u32,
    state: Mutex<State>,
    freed: Notify,
}

/// The machine's means.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// CPUs.
    pub cpus: usize,
    /// Memory, bytes.
    pub memory: u64,
}

impl Machine {
    /// This machine.
    #[must_use]
    pub fn here() -> Self {
        let memory = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
        });
        Self { cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get), memory: memory.unwrap_or(1 << 30) }
    }
}

impl Machine {
    /// One that sets no bound: only what the configuration names does.
    #[must_use]
    pub fn boundless() -> Self {
        Self { cpus: 1 << 20, memory: u64::MAX }
    }
}

impl Capacity {
    /// The account for `config` on `machine`.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "numbers of CPUs are small")]
    pub fn new(config: &config::Config, machine: Machine) -> Arc<Self> {
        let c = &config.capacity;
        let slots = if c.slots == 0 { u32::try_from(machine.cpus * 2).unwrap_or(u32::MAX) } else { c.slots };
        let cpus = if c.cpus == 0.0 { (machine.cpus * 2) as f64 } else { c.cpus };
        let memory = if c.memory == ByteSize(0) { machine.memory / 10 * 9 } else { c.memory.bytes() };
        let total = Need::new(cpus, memory);
        let of_class = |class: &Class| if class.slots == 0 { slots } else { class.slots.min(slots) };
        let class_slots = config.classes.iter().map(|(name, class)| (name.clone(), of_class(class))).collect();
        Arc::new(Self { total, slots, state: Mutex::new(State { free_slots: slots, free: total, class_slots }), freed: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Slots in all.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Whether a task of that size could ever run here.
    #[must_use]
    pub fn could_hold(&self, need: Need) -> bool {
        need.cpu_milli <= self.total.cpu_milli && need.memory <= self.total.memory
    }

    /// How many tasks of `class` with `need` would fit now.
    #[must_use]
    pub fn available(&self, class: &ClassName, need: Need) -> u32 {
        let state = self.state();
        let by = |free: u64, need: u64| free.checked_div(need).map_or(u32::MAX, |n| u32::try_from(n).unwrap_or(u32::MAX));
        let class_free = state.class_slots.get(class).copied().unwrap_or(0);
        class_free.min(state.free_slots).min(by(state.free.cpu_milli, need.cpu_milli)).min(by(state.free.memory, need.memory))
    }

    /// Takes a slot of `class` with `need`, if all of it is free.
    #[must_use]
    pub fn take(self: &Arc<Self>, class: &ClassName, need: Need) -> Option<Permit> {
        let mut state = self.state();
        let class_free = state.class_slots.get(class).copied().unwrap_or(0);
        if class_free == 0 || state.free_slots == 0 || state.free.cpu_milli < need.cpu_milli || state.free.memory < need.memory {
            return None;
        }
        state.class_slots.insert(class.clone(), class_free - 1);
        state.free_slots -= 1;
        state.free.cpu_milli -= need.cpu_milli;
        state.free.memory -= need.memory;
        drop(state);
        Some(Permit { capacity: Arc::clone(self), class: class.clone(), need })
    }

    /// Resolves after a permit was returned since the last call. Cancel safe.
    pub async fn freed(&self) {
        self.freed.notified().await;
    }
}

/// A slot with its CPUs and memory; returned when dropped.
#[derive(Debug)]
pub struct Permit {
    capacity: Arc<Capacity>,
    class: ClassName,
    need: Need,
}

impl Permit {
    /// Exchanges what is held for `need`; false, and nothing changes, when that much is not free.
    #[must_use]
    pub fn resize(&mut self, need: Need) -> bool {
        let mut state = self.capacity.state();
        let cpu = state.free.cpu_milli + self.need.cpu_milli;
        let memory = state.free.memory + self.need.memory;
        if cpu < need.cpu_milli || memory < need.memory {
            return false;
        }
        state.free = Need { cpu_milli: cpu - need.cpu_milli, memory: memory - need.memory };
        self.need = need;
        true
    }

    /// The class that it is for.
    #[must_use]
    pub fn class(&self) -> &ClassName {
        &self.class
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.capacity.state();
        state.free_slots += 1;
        state.free.cpu_milli += self.need.cpu_milli;
        state.free.memory += self.need.memory;
        if let Some(free) = state.class_slots.get_mut(&self.class) {
            *free += 1;
        }
        drop(state);
        self.capacity.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capacity() -> (Arc<Capacity>, ClassName) {
        let mut config = config::load(None, []).unwrap();
        config.capacity = config::Capacity { slots: 2, cpus: 2.0, memory: ByteSize::mib(1024) };
        (Capacity::new(&config, Machine { cpus: 8, memory: 1 << 34 }), ClassName::new("cpu_short").unwrap())
    }

    #[test]
    fn nothing_is_given_twice_and_everything_comes_back() {
        let (capacity, class) = capacity();
        let need = Need::new(1.0, 512 << 20);
        let first = capacity.take(&class, need).expect("free");
        let second = capacity.take(&class, need).expect("free");
        assert!(capacity.take(&class, Need::new(0.0, 0)).is_none(), "no slot is left");
        drop(first);
        assert!(capacity.take(&class, Need::new(1.5, 0)).is_none(), "a CPU is in use");
        drop(second);
        assert!(capacity.take(&class, Need::new(2.0, 1 << 30)).is_some());
        assert!(!capacity.could_hold(Need::new(2.5, 0)));
    }

    #[test]
    fn a_permit_grows_only_into_what_is_free() {
        let (capacity, class) = capacity();
        let mut first = capacity.take(&class, Need::new(1.0, 512 << 20)).expect("free");
        let second = capacity.take(&class, Need::new(1.0, 512 << 20)).expect("free");
        assert!(!first.resize(Need::new(1.5, 512 << 20)));
        drop(second);
        assert!(first.resize(Need::new(1.5, 1 << 30)));
        drop(first);
        assert!(capacity.take(&class, Need::new(2.0, 1 << 30)).is_some(), "all of it came back");
    }
}
