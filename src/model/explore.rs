//! Breadth first through every state of a machine.
//!
//! Own code instead of a model checker's: what must hold here is "from every state the task can still come to its end, by
//! moves that somebody owes", which is a search backwards over the whole graph; the libraries check paths forwards.

use std::collections::{HashMap, HashSet};
use std::fmt::{self, Debug};
use std::hash::Hash;

/// Something that moves from state to state.
pub(super) trait Machine {
    type State: Clone + Eq + Hash + Debug;

    /// Where it begins.
    fn start(&self) -> Self::State;

    /// Everything that may happen next.
    fn moves(&self, state: &Self::State, out: &mut Vec<Move<Self::State>>);

    /// The promise that is broken in this state.
    fn broken(&self, state: &Self::State) -> Option<&'static str>;

    /// Whether everything that had to happen has happened.
    fn is_done(&self, state: &Self::State) -> bool;
}

/// One thing that may happen.
#[derive(Debug, Clone)]
pub(super) struct Move<S> {
    pub(super) what: &'static str,
    /// Nobody owes it: an end must be within reach without any.
    pub(super) fault: bool,
    pub(super) to: S,
}

/// A promise that does not hold, and the shortest way to see it.
pub(super) struct Counterexample {
    pub(super) promise: &'static str,
    pub(super) trace: Vec<String>,
}

impl Debug for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "broken: {}\n{}", self.promise, self.trace.join("\n"))
    }
}

/// What an exploration saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) states: usize,
    pub(super) moves: usize,
    pub(super) ends: usize,
    /// Different things that happened.
    pub(super) kinds: usize,
}

/// The promise that [`Machine::is_done`] stands for.
pub(super) const CAN_END: &str = "a task can always still come to its end";

struct Graph<S> {
    states: Vec<S>,
    known: HashMap<S, u32>,
    /// How each state was reached first.
    came: Vec<(u32, &'static str)>,
    /// Moves that somebody owes, backwards.
    owed: Vec<(u32, u32)>,
}

impl<S: Clone + Eq + Hash + Debug> Graph<S> {
    fn enter(&mut self, state: S, from: u32, what: &'static str) -> u32 {
        let next = u32::try_from(self.states.len()).expect("fewer than 2^32 states");
        *self.known.entry(state).or_insert_with_key(|state| {
            self.states.push(state.clone());
            self.came.push((from, what));
            next
        })
    }

    fn trace(&self, promise: &'static str, to: u32) -> Counterexample {
        let mut trace = Vec::new();
        let mut at = to;
        loop {
            let (from, what) = self.came[at as usize];
            trace.push(format!("  {what}\n      {:?}", self.states[at as usize]));
            if at == 0 {
                break;
            }
            at = from;
        }
        trace.reverse();
        Counterexample { promise, trace }
    }

    /// The first state from which no owed moves lead to one of `ends`.
    fn stuck(&self, ends: &[u32]) -> Option<u32> {
        let mut before: Vec<Vec<u32>> = vec![Vec::new(); self.states.len()];
        for (from, to) in &self.owed {
            before[*to as usize].push(*from);
        }
        let mut reaches = vec![false; self.states.len()];
        let mut todo = ends.to_vec();
        while let Some(state) = todo.pop() {
            if !std::mem::replace(&mut reaches[state as usize], true) {
                todo.extend(&before[state as usize]);
            }
        }
        reaches.iter().position(|reaches| !reaches).and_then(|at| u32::try_from(at).ok())
    }
}

/// Visits every state.
pub(super) fn explore<M: Machine>(machine: &M) -> Result<Seen, Box<Counterexample>> {
    let mut graph = Graph { states: vec![], known: HashMap::new(), came: vec![], owed: vec![] };
    graph.enter(machine.start(), 0, "start");
    let (mut at, mut moves, mut ends, mut kinds) = (0, 0, Vec::new(), HashSet::new());
    let mut next = Vec::new();
    while at < graph.states.len() {
        let state = graph.states[at].clone();
        let number = u32::try_from(at).expect("fewer than 2^32 states");
        if let Some(promise) = machine.broken(&state) {
            return Err(Box::new(graph.trace(promise, number)));
        }
        if machine.is_done(&state) {
            ends.push(number);
        }
        machine.moves(&state, &mut next);
        for Move { what, fault, to } in next.drain(..) {
            moves += 1;
            kinds.insert(what);
            let to = graph.enter(to, number, what);
            if !fault {
                graph.owed.push((number, to));
            }
        }
        at += 1;
    }
    match graph.stuck(&ends) {
        Some(stuck) => Err(Box::new(graph.trace(CAN_END, stuck))),
        None => Ok(Seen { states: graph.states.len(), moves, ends: ends.len(), kinds: kinds.len() }),
    }
}
