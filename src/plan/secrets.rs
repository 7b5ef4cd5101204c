//! Which secrets a task gets, or why it does not.

use std::collections::BTreeSet;

use super::{Rejection, invalid, reject};
use crate::intake::Task;
use crate::task::Reason;
use crate::task::secret::{SecretAs, SecretGrant, SecretRef, is_variable};

/// Most secrets of one task.
const MOST: usize = 64;

/// Longest name.
const LONGEST_NAME: usize = 64;

/// A secret that the task's tenant may refer to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    /// As the task calls it.
    pub name: String,
    /// Where it is.
    pub reference: SecretRef,
    /// By which of the tenant's grants.
    pub grant: SecretGrant,
    /// How it is delivered.
    pub delivery: SecretAs,
}

impl Secret {
    /// The environment variable that tells the task of it.
    #[must_use]
    pub fn variable(&self) -> String {
        match self.delivery {
            SecretAs::Env => self.name.clone(),
            SecretAs::File => format!("{}_FILE", self.name),
        }
    }
}

/// The secrets of a task.
pub(super) fn allowed(task: &Task, grants: &[SecretGrant]) -> Result<Vec<Secret>, Rejection> {
    let requests = &task.assignment.secrets;
    if requests.len() > MOST {
        return Err(invalid(format!("secrets: {} of them; at most {MOST}", requests.len())));
    }
    let env = &task.assignment.execution.env;
    let mut variables = BTreeSet::new();
    let mut secrets = Vec::new();
    for (at, request) in requests.iter().enumerate() {
        let name = &request.name;
        if !is_variable(name) || name.len() > LONGEST_NAME {
            return Err(invalid(format!(
                "secrets[{at}].name: {name:?} cannot be a variable; 1 to {LONGEST_NAME} letters, digits and _, no digit first"
            )));
        }
        if name.starts_with("WINDLASS_") || name == "TRACEPARENT" {
            return Err(invalid(format!("secrets[{at}].name: {name:?} is a name that the worker sets itself")));
        }
        let reference: SecretRef = request.reference.parse().map_err(|e| invalid(format!("secrets[{at}].ref: {e}")))?;
        let Some(grant) = grants.iter().find(|grant| grant.allows(&reference)) else {
            let error = format!("secrets[{at}].ref: tenant {} may not refer to {reference}", task.tenant);
            let hint = "have an operator add it to tenants.<name>.secrets of the workers, or refer to another secret";
            return Err(reject(Reason::PolicyRefused, error, hint));
        };
        let secret = Secret { name: name.clone(), reference, grant: grant.clone(), delivery: request.delivery };
        let variable = secret.variable();
        if env.contains_key(&variable) || !variables.insert(variable.clone()) {
            return Err(invalid(format!(
                "secrets[{at}].name: the variable {variable} is set twice, by another secret or by execution.env"
            )));
        }
        secrets.push(secret);
    }
    Ok(secrets)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::task::Assignment;

    fn planned(secrets: serde_json::Value) -> Result<Vec<Secret>, Rejection> {
        let body = json!({"task_id": "t", "execution": {"runtime": "native", "env": {"TAKEN": "x"}}, "secrets": secrets});
        let assignment: Assignment = serde_json::from_value(body).unwrap();
        let task = Task::of(assignment);
        let grants: Vec<SecretGrant> = serde_json::from_value(json!(["env:ACME_*", "kv:secrets/acme.*"])).unwrap();
        allowed(&task, &grants)
    }

    #[test]
    fn secrets_are_delivered_under_their_names() {
        let secrets =
            planned(json!([{"name": "A", "ref": "env:ACME_A"}, {"name": "A", "ref": "kv:secrets/acme.a", "as": "file"}])).unwrap();
        assert_eq!(secrets.iter().map(Secret::variable).collect::<Vec<_>>(), ["A", "A_FILE"]);
        assert_eq!(String::from(secrets[1].grant.clone()), "kv:secrets/acme.*");
    }

    #[test]
    fn every_refusal_says_which_secret_and_why() {
        let one = |name: &str, reference: &str| json!([{"name": "OK", "ref": "env:ACME_OK"}, {"name": name, "ref": reference}]);
        for (secrets, reason, start) in [
            (one("A B", "env:ACME_A"), Reason::InvalidAssignment, "secrets[1].name: \"A B\" cannot be a variable"),
            (one("", "env:ACME_A"), Reason::InvalidAssignment, "secrets[1].name: \"\" cannot be a variable"),
            (one(&"x".repeat(65), "env:ACME_A"), Reason::InvalidAssignment, "secrets[1].name: \"xxxx"),
            (one("WINDLASS_X", "env:ACME_A"), Reason::InvalidAssignment, "secrets[1].name: \"WINDLASS_X\" is a name"),
            (one("OK", "env:ACME_A"), Reason::InvalidAssignment, "secrets[1].name: the variable OK is set twice"),
            (one("TAKEN", "env:ACME_A"), Reason::InvalidAssignment, "secrets[1].name: the variable TAKEN is set twice"),
            (one("A", "hunter2"), Reason::InvalidAssignment, "secrets[1].ref: \"hunter2\" is no reference"),
            (one("A", "env:OTHER"), Reason::PolicyRefused, "secrets[1].ref: tenant acme may not refer to env:OTHER"),
            (one("A", "file:/etc/shadow"), Reason::PolicyRefused, "secrets[1].ref: tenant acme may not"),
            (json!(vec![json!({"name": "A", "ref": "env:ACME_A"}); 65]), Reason::InvalidAssignment, "secrets: 65 of them"),
        ] {
            let rejection = planned(secrets).expect_err(start);
            assert_eq!(rejection.reason, reason, "{start}");
            assert!(rejection.error.starts_with(start), "{}", rejection.error);
        }
    }
}
