//! stub
use std::os::fd::OwnedFd;
use std::time::Duration;
use crate::supervisor::protocol::*;
use crate::task::{Reason, Limits};
#[derive(Debug)] pub struct SupervisorLost;
#[derive(Debug)] pub enum SpawnFailure { Refused(SpawnError), SupervisorLost }
#[derive(Debug, thiserror::Error)] #[error("x")] pub struct StartError;
#[derive(Debug, Clone)] pub struct Supervisor;
#[derive(Debug)] pub struct Process;
impl Supervisor { pub async fn start(_c: &crate::config::Cgroup, _i: &str) -> Result<Self, StartError> { Err(StartError) }
 pub fn enforced(&self) -> bool { true } pub fn description(&self) -> &str { "" }
 pub async fn spawn(&self, _r: SpawnRequest, _a: OwnedFd, _b: OwnedFd, _c: OwnedFd) -> Result<Process, SpawnFailure> { Err(SpawnFailure::SupervisorLost) }
 pub async fn lost(&self) {} }
impl Process { pub fn pid(&self) -> u32 { 0 } pub fn stop(&self, _g: Duration) {} pub fn renew(&self, _d: Duration) {} pub async fn wait(&mut self) -> Result<ExitReport, SupervisorLost> { Err(SupervisorLost) } }
pub fn reason_of_refusal(_e: &SpawnError) -> (Reason, &'static str) { (Reason::SpawnFailed, "") }
pub fn verdict(_r: &ExitReport, _l: &Limits) -> (Reason, Option<String>, Option<String>) { (Reason::Ok, None, None) }
