//! What this worker may give to tasks: slots, CPUs, memory, GPUs. A permit is held before a message is asked for (invariant 5).
//!
//! A GPU is shared with the other workers of the machine, so a permit that was taken for a pull has only a promise of one: a
//! device that was free when we looked. [`Permit::resize`] turns that into the device itself, before the task is claimed; who
//! loses the race for it gives the message back. Holding the device while waiting at an empty queue would keep it from
//! workers that have tasks for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::config::{self, Class};
use crate::execute::gpu::{Gpus, Held};
use crate::plan::Plan;
use crate::task::{ByteSize, ClassName};

/// Time between two looks for a GPU that another worker has: nobody tells when it is given back.
const LOOK: Duration = Duration::from_millis(200);

/// An amount of this worker's means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Thousandths of a CPU.
    pub cpu_milli: u64,
    /// Bytes.
    pub memory: u64,
    /// Whole devices.
    pub gpus: u32,
}

impl Need {
    /// What a task takes while it runs, its services included.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        let services = plan.container.iter().flat_map(|container| &container.services);
        let (cpus, memory) = services.fold((0.0, 0u64), |(cpus, memory), s| (cpus + s.cpus, memory.saturating_add(s.memory.bytes())));
        let (cpus, memory) = (plan.bounds.cpus.value + cpus, plan.bounds.memory.value.bytes().saturating_add(memory));
        Self { gpus: plan.gpus.value, ..Self::new(cpus, memory) }
    }

    /// What a task of that class takes unless it asks otherwise.
    #[must_use]
    pub fn of_class(class: &Class) -> Self {
        Self { gpus: class.gpus, ..Self::new(class.cpus, class.memory.bytes()) }
    }

    /// Whether it may fit where `other` does not.
    #[must_use]
    pub fn is_less_than(&self, other: Self) -> bool {
        self.cpu_milli < other.cpu_milli || self.memory < other.memory
    }

    /// From CPUs and bytes.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be a small positive number by plan and configuration"
    )]
    pub fn new(cpus: f64, memory: u64) -> Self {
        Self { cpu_milli: (cpus * 1000.0).ceil() as u64, memory, gpus: 0 }
    }
}

#[derive(Debug)]
struct State {
    free_slots: u32,
    free_cpu_milli: u64,
    free_memory: u64,
    class_slots: BTreeMap<ClassName, u32>,
    /// Devices that permits have.
    held: BTreeSet<usize>,
    /// Devices that permits were promised, and have not yet.
    promised: u32,
}

impl State {
    /// How many tasks with `need` fit into slots, CPUs and memory, beside one that needs `kept`.
    fn room(&self, need: Need, kept: Option<Need>) -> u32 {
        let slots = self.free_slots.saturating_sub(u32::from(kept.is_some()));
        let kept = kept.unwrap_or(Need { cpu_milli: 0, memory: 0, gpus: 0 });
        let by = |free: u64, kept: u64, need: u64| {
            free.saturating_sub(kept).checked_div(need).map_or(u32::MAX, |n| u32::try_from(n).unwrap_or(u32::MAX))
        };
        let by_cpu = by(self.free_cpu_milli, kept.cpu_milli, need.cpu_milli);
        slots.min(by_cpu).min(by(self.free_memory, kept.memory, need.memory))
    }
}

/// The account of what is free.
#[derive(Debug)]
pub struct Capacity {
    total: Need,
    slots: u32,
    gpus: Arc<Gpus>,
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
    /// GPUs that tasks can get.
    pub gpus: u32,
}

impl Machine {
    /// This machine, without its GPUs.
    #[must_use]
    pub fn here() -> Self {
        let memory = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
        });
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { cpus, memory: memory.unwrap_or(1 << 30), gpus: 0 }
    }
}

impl Machine {
    /// One that sets no bound: only what the configuration names does.
    #[must_use]
    pub fn boundless() -> Self {
        Self { cpus: 1 << 20, memory: u64::MAX, gpus: u32::MAX }
    }
}

impl Capacity {
    /// The account for `config` on `machine`, of which nothing can be taken but numbers.
    #[must_use]
    pub fn new(config: &config::Config, machine: Machine) -> Arc<Self> {
        Self::with_gpus(config, machine, Arc::new(Gpus::none()))
    }

    /// Likewise, with these devices.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "numbers of CPUs are small")]
    pub fn with_gpus(config: &config::Config, machine: Machine, gpus: Arc<Gpus>) -> Arc<Self> {
        let c = &config.capacity;
        let slots = if c.slots == 0 { u32::try_from(machine.cpus * 2).unwrap_or(u32::MAX) } else { c.slots };
        let cpus = if c.cpus == 0.0 { (machine.cpus * 2) as f64 } else { c.cpus };
        let memory = if c.memory == ByteSize(0) { machine.memory / 10 * 9 } else { c.memory.bytes() };
        let total = Need { gpus: machine.gpus.max(gpus.total()), ..Need::new(cpus, memory) };
        let of_class = |class: &Class| if class.slots == 0 { slots } else { class.slots.min(slots) };
        let state = State {
            free_slots: slots,
            free_cpu_milli: total.cpu_milli,
            free_memory: total.memory,
            class_slots: config.classes.iter().map(|(name, class)| (name.clone(), of_class(class))).collect(),
            held: BTreeSet::new(),
            promised: 0,
        };
        Arc::new(Self { total, slots, gpus, state: Mutex::new(state), freed: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Slots in all.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// The devices of this machine.
    #[must_use]
    pub fn gpus(&self) -> &Arc<Gpus> {
        &self.gpus
    }

    /// How many devices this worker's tasks have.
    #[must_use]
    pub fn gpus_in_use(&self) -> u32 {
        u32::try_from(self.state().held.len()).unwrap_or(u32::MAX)
    }

    /// Whether a task of that size could ever run here.
    #[must_use]
    pub fn could_hold(&self, need: Need) -> bool {
        need.cpu_milli <= self.total.cpu_milli && need.memory <= self.total.memory && need.gpus <= self.total.gpus
    }

    /// How many tasks of `class` with `need` would fit now, with room left beside them for one that needs `kept`.
    #[must_use]
    pub fn available(&self, class: &ClassName, need: Need, kept: Option<Need>) -> u32 {
        let state = self.state();
        let class_free = state.class_slots.get(class).copied().unwrap_or(0);
        let fit = class_free.min(state.room(need, kept));
        // Looking at devices is system calls.
        if fit == 0 || need.gpus == 0 {
            return fit;
        }
        let kept = kept.map_or(0, |kept| kept.gpus);
        fit.min(self.free_gpus(&state).saturating_sub(kept) / need.gpus)
    }

    /// Whether a task of `class` with `need` would fit but for slots, CPUs and memory that other classes have: these come back.
    #[must_use]
    pub fn lacks_room(&self, class: &ClassName, need: Need) -> bool {
        let state = self.state();
        let class_free = state.class_slots.get(class).copied().unwrap_or(0);
        class_free > 0 && state.room(need, None) == 0 && (need.gpus == 0 || self.free_gpus(&state) >= need.gpus)
    }

    /// Devices that nobody has, and nobody was promised.
    fn free_gpus(&self, state: &State) -> u32 {
        let free = self.unheld(state).filter(|device| self.gpus.is_free(*device)).count();
        u32::try_from(free).unwrap_or(u32::MAX).saturating_sub(state.promised)
    }

    fn unheld<'a>(&self, state: &'a State) -> impl Iterator<Item = usize> + use<'a> {
        (0..self.gpus.total() as usize).filter(|device| !state.held.contains(device))
    }

    /// Takes a slot of `class` with `need`, if all of it is free.
    #[must_use]
    pub fn take(self: &Arc<Self>, class: &ClassName, need: Need) -> Option<Permit> {
        let mut state = self.state();
        let class_free = state.class_slots.get(class).copied().unwrap_or(0);
        if class_free == 0 || state.free_slots == 0 || state.free_cpu_milli < need.cpu_milli || state.free_memory < need.memory {
            return None;
        }
        if need.gpus > 0 && self.free_gpus(&state) < need.gpus {
            return None;
        }
        state.class_slots.insert(class.clone(), class_free - 1);
        state.free_slots -= 1;
        state.free_cpu_milli -= need.cpu_milli;
        state.free_memory -= need.memory;
        state.promised += need.gpus;
        drop(state);
        Some(Permit { capacity: Arc::clone(self), class: class.clone(), need, promised: need.gpus, gpus: Vec::new() })
    }

    /// Resolves after a permit was returned since the last call, and now and then while there is a device that this worker has
    /// not: nobody says when another one lets go of it. Cancel safe.
    pub async fn freed(&self) {
        if self.has_not_all() {
            // Both arms are cancel safe.
            tokio::select! {
                () = self.freed.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        } else {
            self.freed.notified().await;
        }
    }

    /// Whether it is free is not asked here: one that was not when work was to be asked for may be by now.
    fn has_not_all(&self) -> bool {
        let state = self.state();
        self.unheld(&state).next().is_some()
    }
}

/// A slot with its CPUs, memory and devices; returned when dropped.
#[derive(Debug)]
pub struct Permit {
    capacity: Arc<Capacity>,
    class: ClassName,
    need: Need,
    promised: u32,
    gpus: Vec<Held>,
}

impl Permit {
    /// Exchanges what is held for `need`, with devices in the place of promises; false, and nothing changes, when that much
    /// is not free.
    #[must_use]
    pub fn resize(&mut self, need: Need) -> bool {
        let mut state = self.capacity.state();
        let cpu = state.free_cpu_milli + self.need.cpu_milli;
        let memory = state.free_memory + self.need.memory;
        if cpu < need.cpu_milli || memory < need.memory {
            return false;
        }
        let missing = need.gpus.saturating_sub(u32::try_from(self.gpus.len()).unwrap_or(u32::MAX));
        let Some(taken) = self.devices(&state, missing) else { return false };
        state.held.extend(taken.iter().map(|held| held.index));
        self.gpus.extend(taken);
        state.promised -= self.promised;
        let spare = self.promised > missing;
        self.promised = 0;
        (state.free_cpu_milli, state.free_memory) = (cpu - need.cpu_milli, memory - need.memory);
        self.need = need;
        drop(state);
        if spare {
            self.capacity.freed.notify_one();
        }
        true
    }

    /// So many devices more; none when that many cannot be had. What others were promised does not count: a permit that waits at
    /// an empty queue would keep a task that asks for several devices from ever getting them.
    fn devices(&self, state: &State, missing: u32) -> Option<Vec<Held>> {
        let (capacity, missing) = (&self.capacity, missing as usize);
        let taken: Vec<Held> = capacity.unheld(state).filter_map(|device| capacity.gpus.take(device)).take(missing).collect();
        (taken.len() == missing).then_some(taken)
    }

    /// The class that it is for.
    #[must_use]
    pub fn class(&self) -> &ClassName {
        &self.class
    }

    /// Its devices.
    #[must_use]
    pub fn gpus(&self) -> &[Held] {
        &self.gpus
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.capacity.state();
        state.free_slots += 1;
        state.free_cpu_milli += self.need.cpu_milli;
        state.free_memory += self.need.memory;
        state.promised -= self.promised;
        for held in self.gpus.drain(..) {
            state.held.remove(&held.index);
        }
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
        (Capacity::new(&config, Machine { cpus: 8, memory: 1 << 34, gpus: 0 }), ClassName::new("cpu_short").unwrap())
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

    #[test]
    fn room_is_kept_for_who_needs_more() {
        let (capacity, class) = capacity();
        let (small, large) = (Need::new(1.0, 1 << 20), Need::new(2.0, 1 << 20));
        assert_eq!((capacity.available(&class, small, None), capacity.available(&class, small, Some(large))), (2, 0));
        assert!(!capacity.lacks_room(&class, large), "there is room");
        let first = capacity.take(&class, small).expect("free");
        assert!(capacity.lacks_room(&class, large));
        assert_eq!((capacity.available(&class, small, None), capacity.available(&class, small, Some(small))), (1, 0));
        drop(first);
        assert!(!capacity.lacks_room(&class, large), "it came back");
    }

    /// A worker of a machine with two devices, whose locks are in `dir`.
    fn with_gpus(dir: &std::path::Path) -> Arc<Capacity> {
        let locks = dir.join("locks").display().to_string();
        let text = format!(
            "[capacity]\nslots = 4\n[gpu]\ndevices = [\"a=/dev/zero\", \"b=/dev/full\"]\nlock_dir = {locks:?}\n[classes.gpu]\ngpus = 1\nmax_gpus = 2\n[classes.cpu_short]\nmax_gpus = 1"
        );
        let config = config::load_text(&text).unwrap();
        let gpus = Arc::new(Gpus::find(&config).unwrap());
        Capacity::with_gpus(&config, Machine { cpus: 8, memory: 1 << 34, gpus: 0 }, gpus)
    }

    fn gpus(n: u32) -> Need {
        Need { gpus: n, ..Need::new(0.5, 1 << 20) }
    }

    fn ids(permit: &Permit) -> Vec<String> {
        crate::execute::gpu::ids(permit.gpus())
    }

    #[test]
    fn a_device_is_one_tasks_among_all_workers() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other, class) = (with_gpus(dir.path()), with_gpus(dir.path()), ClassName::new("gpu").unwrap());
        let mut first = one.take(&class, gpus(1)).expect("free");
        let mut second = other.take(&class, gpus(1)).expect("a promise keeps nothing from other workers");
        assert!(first.resize(gpus(1)) && second.resize(gpus(1)));
        assert_eq!((ids(&first), ids(&second)), (vec!["a".to_owned()], vec!["b".to_owned()]));
        assert_eq!((one.available(&class, gpus(1), None), one.gpus_in_use()), (0, 1));
        assert!(one.take(&class, gpus(1)).is_none() && other.take(&class, gpus(1)).is_none(), "both are in use");
        assert!(!one.lacks_room(&class, gpus(1)), "no room that is kept would help");
        assert!(one.available(&class, gpus(0), None) > 0, "who needs none is not kept from running");
        drop(second);
        assert_eq!(one.available(&class, gpus(1), None), 1, "given back by the other worker");
        let mut third = one.take(&class, gpus(1)).expect("free");
        let mut winner = other.take(&class, gpus(1)).expect("free");
        assert!(winner.resize(gpus(1)) && !third.resize(gpus(1)), "the race was lost: it is given back unclaimed");
        drop(winner);
        assert!(third.resize(gpus(1)), "a permit that was returned gives its device back");
    }

    #[test]
    fn promises_bound_what_is_pulled_and_the_first_who_asks_gets_the_devices() {
        let dir = tempfile::tempdir().unwrap();
        let (capacity, class) = (with_gpus(dir.path()), ClassName::new("gpu").unwrap());
        let mut first = capacity.take(&class, gpus(1)).expect("free");
        let mut second = capacity.take(&class, gpus(1)).expect("free");
        assert!(capacity.take(&class, gpus(1)).is_none(), "both are promised");
        assert!(first.resize(gpus(2)) && first.resize(gpus(2)), "a permit that only waits does not keep a device from it");
        assert!(!second.resize(gpus(1)), "it is given back unclaimed");
        assert!(second.resize(gpus(0)), "unless it asks for none after all");
        assert_eq!(ids(&first), ["a", "b"]);
        assert!(!capacity.could_hold(gpus(3)));
        drop((first, second));
        assert_eq!(capacity.available(&class, gpus(1), None), 2, "all of it came back");
    }
}
