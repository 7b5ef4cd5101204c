//! NATS users with too few rights, and with exactly those that the doctor asks for.

use super::*;

const USERS: &str = "accounts { A { jetstream: enabled, users: [\n\
    { user: boss, password: boss }\n\
    { user: guest, password: guest, permissions: { publish: { allow: [\">\"] }, subscribe: { allow: [\">\"] } } }\n\
    ] } }\nno_auth_user: boss";

/// A fleet on a server whose user `guest` may do everything, until it is told otherwise.
async fn with_guest() -> Option<Fleet> {
    configured(USERS, &[]).await
}

fn guest_url(fleet: &Fleet) -> String {
    fleet.server.url().replace("nats://", "nats://guest:guest@")
}

/// What `guest` may publish to and subscribe to from now on, in NATS's words.
fn permit(fleet: &Fleet, publish: &str, subscribe: &str) {
    let text = fleet.server.config();
    let (head, rest) = text.split_once("permissions: {").expect("permissions");
    let (_, tail) = rest.split_once("} } }\n").expect("their end");
    fleet.server.configure(&format!("{head}permissions: {{ publish: {{ {publish} }}, subscribe: {{ {subscribe} }} }} }}\n{tail}"));
    fleet.server.reload();
}

async fn examine_guest(fleet: &Fleet, args: &[&str]) -> Said {
    let url = guest_url(fleet);
    Said::of(&ended(doctor(fleet, &[args, &["--server", &url]].concat())).await)
}

fn failing_rights(said: &Said) -> Vec<&str> {
    said.findings.iter().filter(|f| f["area"] == "rights" && f["level"] == "fail").map(|f| f["check"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn each_denied_subject_is_named_and_no_other() {
    let Some(fleet) = with_guest().await else { return };
    let said = examine_guest(&fleet, &[]).await;
    assert_eq!((said.code, failing_rights(&said)), (Some(0), vec![]), "{}", said.text);
    assert!(said.find("connection")["found"].as_str().unwrap().contains("user guest of account A"), "{}", said.text);
    let (prefix, tasks) = (&fleet.prefix, fleet.stream("TASKS"));
    permit(
        &fleet,
        &format!("deny: [\"{prefix}.events.>\", \"$JS.API.CONSUMER.MSG.NEXT.>\", \"$JS.ACK.>\", \"$JS.API.STREAM.UPDATE.>\"]"),
        &format!("deny: [\"{prefix}.control.>\"]"),
    );
    let said = examine_guest(&fleet, &[]).await;
    let expected = [
        format!("publish $JS.ACK.{tasks}.>"),
        format!("publish $JS.API.CONSUMER.MSG.NEXT.{tasks}.*"),
        format!("publish {prefix}.events.*.*.*"),
        format!("subscribe {prefix}.control.*.*"),
    ];
    assert_eq!(failing_rights(&said), expected, "{}", said.text);
    assert_eq!(said.code, Some(1), "{}", said.text);
    let mend = said.find(&expected[2])["mend"].as_str().unwrap();
    assert!(mend.starts_with(&format!("nsc edit user --name guest --allow-pub '{prefix}.events.*.*.*'")), "{mend}");
    // An operator lacks others.
    let said = examine_guest(&fleet, &["--role", "operator"]).await;
    let kinds = ["CONTROL", "DEAD", "EVENTS", "LOGS", "TASKS"].map(|kind| fleet.stream(kind));
    let mut expected: Vec<String> = kinds.into_iter().chain([format!("KV_{}", fleet.stream("WORKERS"))]).collect();
    expected.sort();
    let expected: Vec<String> = expected.iter().map(|stream| format!("publish $JS.API.STREAM.UPDATE.{stream}")).collect();
    assert_eq!(failing_rights(&said), expected, "{}", said.text);
    fleet.finish_unchecked().await;
}

#[tokio::test]
async fn one_who_hears_no_answers_is_told_why() {
    let Some(fleet) = with_guest().await else { return };
    permit(&fleet, "allow: [\">\"]", "deny: [\"_INBOX.>\"]");
    let said = examine_guest(&fleet, &[]).await;
    assert_eq!((said.code, failing_rights(&said)), (Some(1), vec!["subscribe _INBOX.>"]), "{}", said.text);
    let streams = said.find("streams");
    assert!(streams["found"].as_str().unwrap().contains("see rights"), "{streams}");
    fleet.finish_unchecked().await;
}

/// Exactly what the list of a role says, as a server's configuration.
fn grants(fleet: &Fleet, role: Role) -> [String; 2] {
    let config = config::load(None, []).unwrap();
    let subjects = Subjects::new(&Tenant::new(&fleet.prefix).unwrap());
    let all = rights::rights(&subjects, &config);
    [Act::Publish, Act::Subscribe].map(|act| {
        // What is optional to subscribe to is tried at once, and told of when it is refused.
        let of = all.iter().filter(|right| right.role == role && right.act == act && (!right.optional || act == Act::Subscribe));
        let subjects: BTreeSet<String> = of.map(|right| format!("\"{}\"", right.grant)).collect();
        format!("allow: [{}]", subjects.into_iter().collect::<Vec<_>>().join(", "))
    })
}

#[tokio::test]
async fn with_exactly_the_listed_rights_a_worker_works() {
    let Some(fleet) = with_guest().await else { return };
    let [publish, subscribe] = grants(&fleet, Role::Worker);
    permit(&fleet, &publish, &subscribe);
    let said = examine_guest(&fleet, &[]).await;
    assert_eq!((said.code, failing_rights(&said)), (Some(0), vec![]), "{}", said.text);
    let worker = fleet.worker_at("guest", &guest_url(&fleet), &[("CAPACITY__SLOTS", "2"), ("SWEEPER__INTERVAL_S", "0.2")]);
    let gate = Gate::new(&fleet.dir, "canceled");
    let task = fleet.submit(&Job::bash(format!("echo out; {}", gate.wait()))).await;
    fleet.output_has(&task, "out").await;
    fleet.cancel(&task).await;
    assert_eq!(fleet.end(&task).await.reason, Some(Reason::Canceled));
    let broken = fleet.submit_raw("broken", None, "{").await;
    assert_eq!(fleet.end(&broken).await.reason, Some(Reason::InvalidAssignment));
    let retried =
        fleet.submit(&Job::bash("[ $WINDLASS_ATTEMPT -gt 1 ]").set("/retry/max_attempts", 2).set("/retry/on", vec!["failure"])).await;
    assert_eq!(fleet.end(&retried).await.task.attempt, 2);
    assert!(!worker.log().contains("lack a right"), "{}", worker.log());
    fleet.finish().await;
}

#[tokio::test]
async fn with_exactly_the_listed_rights_an_operators_verbs_work() {
    let Some(fleet) = with_guest().await else { return };
    fleet.worker(&[("CAPACITY__SLOTS", "2")]);
    let [publish, subscribe] = grants(&fleet, Role::Operator);
    permit(&fleet, &publish, &subscribe);
    let said = examine_guest(&fleet, &["--role", "operator"]).await;
    assert_eq!((said.code, failing_rights(&said)), (Some(0), vec![]), "{}", said.text);
    assert!(!said.named("warn").iter().any(|check| check.contains("control-workers")), "nobody answers, which is one: {}", said.text);
    // Something for init to do.
    let tasks = fleet.js.get_stream(fleet.stream("TASKS")).await.unwrap();
    tasks.delete_consumer("cpu_short-low").await.unwrap();
    let url = guest_url(&fleet);
    for (args, code) in [
        (vec!["init"], 0),
        (vec!["run", "--id", "one", "--", "echo", "hello"], 0),
        (vec!["status", "one"], 0),
        (vec!["logs", "one"], 0),
        (vec!["events", "one"], 0),
        (vec!["cancel", "one"], 5),
        (vec!["dead", "list"], 0),
        (vec!["list"], 0),
        (vec!["workers"], 0),
        (vec!["events", "--outcome", "success"], 0),
    ] {
        let mut command = fleet.cli(&args);
        command.env("NATS_URL", &url);
        let output = ended(command).await;
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    fleet.finish_unchecked().await;
}
