//! The worker's credentials lose a right, or their validity, while tasks run.

use std::sync::Arc;
use std::time::Duration;

use crate::harness::job::Gate;
use crate::harness::operator::Operator;
use crate::harness::worker::Worker;
use crate::harness::{Fleet, Job};
use crate::server_faults::{QUICK, configured, done_but_not_acked, first_and_well, reconfigure, running};

const USERS: &str = "accounts { A { jetstream: enabled, users: [\n\
    { user: boss, password: boss }\n\
    { user: worker, password: secret, permissions: { publish: { deny: [\"nothing\"] } } }\n\
    ] } }\nno_auth_user: boss";

/// A worker with credentials of its own, on a server that knows it.
async fn with_users() -> Option<(Fleet, Arc<Worker>)> {
    let fleet = configured(USERS, &[]).await?;
    let url = fleet.server.url().replace("nats://", "nats://worker:secret@");
    let worker = fleet.worker_at("guest", &url, &[("CAPACITY__SLOTS", "2")]);
    Some((fleet, worker))
}

#[tokio::test]
async fn a_right_taken_away_and_given_back_delays_and_loses_nothing() {
    let Some((fleet, worker)) = with_users().await else { return };
    let gate = Gate::new(&fleet.dir, "events");
    let task = running(&fleet, &gate).await;
    let denied = format!("\"{}.events.>\"", fleet.prefix);
    reconfigure(&fleet, "\"nothing\"", &denied);
    fleet.server.reload();
    gate.open();
    worker.says(&["ERROR", "lack a right", "events.acme"]).await;
    done_but_not_acked(&fleet, &task).await;
    reconfigure(&fleet, &denied, "\"nothing\"");
    fleet.server.reload();
    first_and_well(&fleet.end(&task).await);
    // Likewise the right to take work.
    reconfigure(&fleet, "\"nothing\"", "\"$JS.API.CONSUMER.MSG.NEXT.>\"");
    fleet.server.reload();
    worker.says(&["ERROR", "lack a right", "CONSUMER.MSG.NEXT"]).await;
    let task = fleet.submit(&Job::argv(["true"])).await;
    worker.says(&["cannot pull", "may this worker publish"]).await;
    reconfigure(&fleet, "\"$JS.API.CONSUMER.MSG.NEXT.>\"", "\"nothing\"");
    fleet.server.reload();
    first_and_well(&fleet.end(&task).await);
    fleet.finish().await;
}

#[tokio::test]
async fn a_changed_password_is_said_and_costs_no_attempt_when_it_is_put_right() {
    let Some((fleet, worker)) = with_users().await else { return };
    let gate = Gate::new(&fleet.dir, "password");
    let task = running(&fleet, &gate).await;
    reconfigure(&fleet, "password: secret", "password: other");
    fleet.server.reload();
    worker.says(&["not, or no longer, accepted"]).await;
    gate.open();
    done_but_not_acked(&fleet, &task).await;
    reconfigure(&fleet, "password: other", "password: secret");
    fleet.server.reload();
    first_and_well(&fleet.end(&task).await);
    fleet.finish().await;
}

#[tokio::test]
async fn credentials_that_expired_are_taken_from_their_file_when_they_are_renewed() {
    let Some((operator, server)) = Operator::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (boss, own) = (dir.path().join("boss.creds"), dir.path().join("worker.creds"));
    operator.write_credentials(&boss, Duration::from_secs(3600));
    let fleet = Fleet::on(server, &[QUICK, &[("BUS__CREDS", boss.to_str().unwrap())]].concat()).await;
    operator.write_credentials(&own, Duration::from_secs(5));
    let worker = fleet.worker(&[("BUS__CREDS", own.to_str().unwrap())]);
    let gate = Gate::new(&fleet.dir, "expiry");
    let task = running(&fleet, &gate).await;
    worker.says(&["Expired", "not, or no longer, accepted"]).await;
    gate.open();
    done_but_not_acked(&fleet, &task).await;
    operator.write_credentials(&own, Duration::from_secs(3600));
    first_and_well(&fleet.end(&task).await);
    fleet.finish().await;
}
