//! Where a run stands, as people see it: named stages with a percentage.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Time;

/// The stages every run passes, with the percentage each stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The assignment is checked and planned.
    Validating,
    /// Work directory and inputs are made.
    Loading,
    /// The task runs.
    Executing,
    /// Output and results are stored.
    Finalizing,
    /// Over.
    Done,
}

impl Stage {
    /// The name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Validating => "VALIDATING",
            Self::Loading => "LOADING",
            Self::Executing => "EXECUTING",
            Self::Finalizing => "FINALIZING",
            Self::Done => "DONE",
        }
    }

    /// The percentage shown when the stage is entered.
    #[must_use]
    pub fn pct(self) -> f64 {
        match self {
            Self::Validating => 5.0,
            Self::Loading => 15.0,
            Self::Executing => 60.0,
            Self::Finalizing => 90.0,
            Self::Done => 100.0,
        }
    }

    /// The record of entering this stage now.
    #[must_use]
    pub fn entered(self) -> StageEntry {
        StageEntry { stage: self.name().to_owned(), pct: self.pct(), at: Time::now(), message: None }
    }
}

/// One entry of a run's stage history: a stage of the worker, or one that the task reported itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StageEntry {
    /// Name of the stage.
    pub stage: String,
    /// Percentage, 0 to 100.
    pub pct: f64,
    /// When it was entered.
    pub at: Time,
    /// What the task said about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}
