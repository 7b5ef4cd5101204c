//! A tenant's NATS user, with the permissions that `SECURITY.md` recommends.

use std::time::Duration;

use async_nats::{Client, ConnectOptions};
use futures_util::StreamExt as _;
use windlass::task::Reason;

use crate::harness::server::Server;
use crate::harness::{Fleet, Job, PATIENCE, Task};

/// The user as it stands in the document, for a prefix of this test's.
fn user(prefix: &str) -> String {
    let text = include_str!("../../../SECURITY.md");
    let from = text.find("{ user: acme").expect("the template");
    let template = &text[from..from + text[from..].find("\n```").expect("its end")];
    template.replace("$ACME_PASSWORD", "of-acme").replace("windlass.", &format!("{prefix}."))
}

/// Connects as the tenant; what the server forbids it comes through the channel.
async fn tenant(server: &Server) -> (Client, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    let options = ConnectOptions::with_user_and_password("acme".into(), "of-acme".into()).custom_inbox_prefix("_INBOX_acme");
    let options = options.event_callback(move |event| {
        let _ = tell.send(event.to_string());
        async {}
    });
    (options.connect(server.url()).await.expect("the tenant may connect"), told)
}

/// Waits until the server has said so.
async fn forbidden(told: &mut tokio::sync::mpsc::UnboundedReceiver<String>, subject: &str) {
    let lower = subject.to_lowercase();
    let heard = tokio::time::timeout(PATIENCE, async {
        while let Some(text) = told.recv().await {
            if text.to_lowercase().contains("permissions violation") && text.to_lowercase().contains(&lower) {
                return;
            }
        }
        panic!("the connection is gone");
    });
    assert!(heard.await.is_ok(), "{subject} is not forbidden");
}

#[tokio::test]
async fn a_tenants_user_can_do_what_its_permissions_say_and_no_more() {
    // Fleets choose their prefix when they start, so the server allows for any of this process.
    let Some(server) = Server::with_config(|port, dir| {
        let prefix = "*";
        format!(
            "listen: 127.0.0.1:{port}\njetstream {{ store_dir: {:?} }}\nno_auth_user: operator\nauthorization {{ users: [\n\
             {{ user: operator, password: of-the-operator }}\n{}\n] }}\n",
            dir.join("data"),
            user(prefix)
        )
    }) else {
        return;
    };
    let fleet = Fleet::on(server, &[]).await;
    fleet.worker(&[]);
    let (client, mut told) = tenant(&fleet.server).await;
    let mut events = client.subscribe(format!("{}.events.acme.>", fleet.prefix)).await.unwrap();
    let js = async_nats::jetstream::new(client.clone());
    let job = Job::bash("echo mine");
    let (subject, task) = (fleet.subject(&job, &job.task_id()), Task { tenant: "acme".into(), id: job.task_id() });
    js.publish(subject, job.encode().into()).await.unwrap().await.expect("its own task is taken");
    assert_eq!(fleet.end(&task).await.reason, Some(Reason::Ok));
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let event = tokio::time::timeout(PATIENCE, events.next()).await.expect("it sees its own events").unwrap();
        seen.push(event.subject.to_string());
    }
    assert!(seen[1].ends_with(".task_completed"), "{seen:?}");

    let prefix = &fleet.prefix;
    let upper = prefix.to_uppercase();
    let forged = [
        format!("{prefix}.tasks.cpu_short.normal.globex.t1"),
        format!("{prefix}.events.acme.{}.task_failed", task.id),
        format!("{prefix}.events.globex.t1.task_completed"),
        format!("{prefix}.logs.acme.{}.1.stdout", task.id),
        format!("{prefix}.control.globex.t1"),
        format!("{prefix}.dead.cpu_short.acme"),
        format!("$KV.{upper}_WORKERS.worker-0"),
        format!("$JS.API.STREAM.PURGE.{upper}_TASKS"),
        format!("$JS.API.STREAM.DELETE.{upper}_EVENTS"),
        format!("$JS.API.STREAM.MSG.GET.{upper}_EVENTS"),
        format!("$JS.API.CONSUMER.CREATE.{upper}_EVENTS.x.{prefix}.events.acme.>"),
        format!("$JS.API.CONSUMER.MSG.NEXT.{upper}_TASKS.cpu_short-normal"),
        format!("$JS.ACK.{upper}_TASKS.cpu_short-normal.1.1.1.1.0"),
    ];
    fleet.left_the_queue(&task).await;
    let before = fleet.queued().await.len();
    for subject in &forged {
        client.publish(subject.clone(), "{}".into()).await.unwrap();
        client.flush().await.unwrap();
        forbidden(&mut told, subject).await;
    }
    assert_eq!(fleet.queued().await.len(), before);
    assert_eq!(fleet.chain(&task).len(), 2, "its chain is as the worker wrote it");

    for subject in [
        format!("{prefix}.events.globex.>"),
        format!("{prefix}.events.>"),
        format!("{prefix}.tasks.>"),
        format!("{prefix}.logs.globex.>"),
        "_INBOX.>".to_owned(),
        ">".to_owned(),
    ] {
        let mut others = client.subscribe(subject.clone()).await.unwrap();
        client.flush().await.unwrap();
        forbidden(&mut told, &subject).await;
        let job = Job { tenant: "globex".into(), ..Job::argv(["true"]) };
        let other = fleet.submit(&job).await;
        fleet.end(&other).await;
        // Everything of that task was published before this came through.
        client.flush().await.unwrap();
        let heard = tokio::time::timeout(Duration::ZERO, others.next()).await;
        assert!(!matches!(heard, Ok(Some(_))), "{subject}: {heard:?}");
    }
    fleet.finish().await;
}
