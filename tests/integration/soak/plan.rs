//! What a seed means: tasks, faults, and their order.

use windlass::task::Reason;

use crate::harness::Job;
use crate::harness::crew::Fault;
use crate::harness::dice::Dice;

/// What a task does, and so how it may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Writes some lines and ends well.
    Succeeds { millis: u64, lines: u64 },
    /// Ends with this code; nobody asks for another attempt.
    Fails { code: i32 },
    /// Longer than it may, and deaf to SIGTERM.
    TimesOut,
    /// Canceled before anybody can know whether it runs.
    CanceledWaiting,
    /// Canceled when it was claimed.
    CanceledRunning,
    /// Fails until this attempt.
    Retries { until: u32 },
    /// Fails on each of two attempts.
    RetriesInVain,
    /// Writes so many lines of 64 bytes, as fast as it can.
    Floods { lines: u64 },
    /// Takes more memory than it may.
    Oom,
    /// Leaves processes behind that run on.
    LeavesChildren,
    /// Is no assignment.
    Malformed,
    /// Asks for more than any task may.
    Refused,
}

impl Kind {
    /// How many there are.
    pub const NAMES: usize = 12;

    fn roll(dice: &mut Dice) -> Self {
        match dice.roll(100) {
            0..35 => Self::Succeeds { millis: dice.roll(600), lines: dice.roll(400) },
            35..45 => Self::Fails { code: i32::try_from(1 + dice.roll(100)).expect("small") },
            45..51 => Self::TimesOut,
            51..56 => Self::CanceledWaiting,
            56..60 => Self::CanceledRunning,
            60..68 => Self::Retries { until: u32::try_from(2 + dice.roll(3)).expect("small") },
            68..73 => Self::RetriesInVain,
            73..79 => Self::Floods { lines: 1000 + dice.roll(8000) },
            79..84 => Self::Oom,
            84..90 => Self::LeavesChildren,
            90..95 => Self::Malformed,
            _ => Self::Refused,
        }
    }

    /// Without its figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::Succeeds { .. } => "succeeds",
            Self::Fails { .. } => "fails",
            Self::TimesOut => "times out",
            Self::CanceledWaiting => "canceled waiting",
            Self::CanceledRunning => "canceled running",
            Self::Retries { .. } => "retries",
            Self::RetriesInVain => "retries in vain",
            Self::Floods { .. } => "floods",
            Self::Oom => "oom",
            Self::LeavesChildren => "leaves children",
            Self::Malformed => "malformed",
            Self::Refused => "refused",
        }
    }

    /// Every end that it may come to, whatever goes wrong around it. Faults cost attempts, of which there are plenty; only who
    /// asked for two may lose the last one with its worker.
    pub fn may_end_by(self) -> &'static [Reason] {
        match self {
            Self::Succeeds { .. } | Self::Retries { .. } | Self::Floods { .. } | Self::LeavesChildren => &[Reason::Ok],
            Self::Fails { .. } => &[Reason::ExitNonzero],
            Self::TimesOut => &[Reason::Timeout],
            Self::CanceledWaiting | Self::CanceledRunning => &[Reason::Canceled],
            Self::RetriesInVain => &[Reason::ExitNonzero, Reason::AttemptsExhausted],
            Self::Oom => &[Reason::OomKilled],
            Self::Malformed => &[Reason::InvalidAssignment],
            Self::Refused => &[Reason::PolicyRefused],
        }
    }
}

/// One task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    id: String,
    pub kind: Kind,
    priority: &'static str,
    msgpack: bool,
}

impl Planned {
    /// Its assignment.
    pub fn job(&self) -> Job {
        let retry = |max_attempts: u32| {
            serde_json::json!({"max_attempts": max_attempts, "on": ["failure"],
                "backoff": {"initial_ms": 50, "factor": 1.5, "max_ms": 300}})
        };
        let job = match self.kind {
            Kind::Succeeds { millis, lines } => Job::bash(format!("seq 1 {lines}; sleep 0.{millis:03}")),
            Kind::Fails { code } => Job::bash(format!("echo no >&2; exit {code}")),
            Kind::TimesOut => Job::bash("trap '' TERM; while :; do sleep 0.05; done").timeout(0.3).grace(0.1),
            Kind::CanceledWaiting | Kind::CanceledRunning => Job::argv(["sleep", "1000"]).timeout(3000.0),
            Kind::Retries { until } => Job::bash(format!("[ $WINDLASS_ATTEMPT -ge {until} ]")).set("/retry", retry(20)),
            Kind::RetriesInVain => Job::bash("sleep 0.1; exit 1").set("/retry", retry(2)),
            Kind::Floods { lines } => Job::program("flood.sh", [(lines * 64).to_string()]),
            Kind::Oom => Job::bash("head -c 200000000 /dev/zero | tail").memory("16MiB"),
            Kind::LeavesChildren => {
                Job::bash("setsid sleep 300 >/dev/null 2>&1 & (setsid sh -c 'trap \"\" TERM; sleep 300' >/dev/null 2>&1 &); echo left")
            }
            // The id is right, so that it has a chain; what it is to run is not.
            Kind::Malformed => Job::argv(["true"]).set("/execution/runtime", "nonsense"),
            Kind::Refused => Job::argv(["true"]).memory("1TiB"),
        };
        let job = job.id(&self.id).priority(self.priority);
        if self.msgpack { job.msgpack() } else { job }
    }

    /// All of its standard output, when it is known.
    pub fn output(&self) -> Option<String> {
        match self.kind {
            Kind::Succeeds { lines, .. } => Some((1..=lines).map(|n| format!("{n}\n")).collect()),
            Kind::Floods { lines } => Some(format!("{:063}\n", 0).repeat(usize::try_from(lines).expect("small"))),
            Kind::LeavesChildren => Some("left\n".to_owned()),
            Kind::Fails { .. } | Kind::Retries { .. } | Kind::RetriesInVain | Kind::TimesOut => Some(String::new()),
            Kind::CanceledWaiting | Kind::CanceledRunning | Kind::Oom | Kind::Malformed | Kind::Refused => None,
        }
    }
}

/// A fault after the submission of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedFault {
    pub after: usize,
    pub fault: Fault,
    pub victim: usize,
}

/// What a seed means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub tasks: Vec<Planned>,
    pub faults: Vec<PlannedFault>,
}

impl Plan {
    /// Of so many tasks.
    pub fn of(seed: u64, tasks: u64) -> Self {
        const KINDS: [Fault; 6] =
            [Fault::KillWorker, Fault::KillSupervisor, Fault::KillBoth, Fault::Freeze, Fault::Drain, Fault::KillServer];
        let mut dice = Dice::new(seed);
        let mut plan = Self { tasks: Vec::new(), faults: Vec::new() };
        let mut next_fault = 10;
        // Each kind of fault once before any comes again, in an order of the seed's.
        let mut bag: Vec<Fault> = Vec::new();
        for n in 0..tasks {
            let kind = first_of_each(n).unwrap_or_else(|| Kind::roll(&mut dice));
            let priority = ["high", "normal", "low"][usize::try_from(dice.roll(3)).expect("small")];
            plan.tasks.push(Planned { id: format!("soak-{seed}-{n}"), kind, priority, msgpack: dice.roll(2) == 0 });
            if n == next_fault {
                if bag.is_empty() {
                    bag = KINDS.to_vec();
                }
                let fault = bag.swap_remove(usize::try_from(dice.roll(bag.len() as u64)).expect("small"));
                let victim = usize::try_from(dice.roll(3)).expect("small");
                plan.faults.push(PlannedFault { after: usize::try_from(n).expect("small"), fault, victim });
                next_fault += 6 + dice.roll(13);
            }
        }
        plan
    }
}

/// So that a short run has all of them.
fn first_of_each(n: u64) -> Option<Kind> {
    Some(match n {
        0 => Kind::Succeeds { millis: 10, lines: 1 },
        1 => Kind::Fails { code: 7 },
        2 => Kind::TimesOut,
        3 => Kind::CanceledWaiting,
        4 => Kind::CanceledRunning,
        5 => Kind::Retries { until: 2 },
        6 => Kind::RetriesInVain,
        7 => Kind::Floods { lines: 4000 },
        8 => Kind::Oom,
        9 => Kind::LeavesChildren,
        10 => Kind::Malformed,
        11 => Kind::Refused,
        _ => return None,
    })
}
