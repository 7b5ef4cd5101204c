//! The tests' own engine: that it works is what all tests of containers stand on.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use serde_json::json;

use crate::harness::Engine;
use crate::harness::docker::IMAGE;

/// Runs a container to its end; exit status and output.
fn run(engine: &Engine, more: serde_json::Value) -> (i64, String) {
    let mut body = json!({"Image": IMAGE, "Tty": true});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let made = engine.ask("POST", "/containers/create", body.to_string().as_bytes()).unwrap();
    assert_eq!(made.status, 201, "{}", made.text());
    let id = made.json()["Id"].as_str().unwrap().to_owned();
    engine.does("POST", &format!("/containers/{id}/start"), &[204]);
    let code = engine.does("POST", &format!("/containers/{id}/wait"), &[200]).json()["StatusCode"].as_i64().unwrap();
    let output = engine.does("GET", &format!("/containers/{id}/logs?stdout=1&stderr=1"), &[200]).text();
    engine.does("DELETE", &format!("/containers/{id}?force=1"), &[204]);
    (code, output)
}

#[test]
fn an_engine_of_the_tests_own_runs_containers_in_networks_and_leaves_nothing() {
    let Some(engine) = Engine::private(&[]) else { return };
    let (code, output) = run(&engine, json!({"Cmd": ["bash", "-c", "cat /proc/self/cgroup; echo $BASH_VERSION; exit 3"]}));
    assert_eq!(code, 3, "{output}");
    // A service that is found by its name, in a network of its own.
    let network = json!({"Name": "n", "Internal": true}).to_string();
    assert_eq!(engine.ask("POST", "/networks/create", network.as_bytes()).unwrap().status, 201);
    let service = json!({"Image": IMAGE, "Cmd": ["sh", "-c", "echo hello > /tmp/index.html; exec httpd -f -p 80 -h /tmp"], "HostConfig": {"NetworkMode": "n"}});
    assert_eq!(engine.ask("POST", "/containers/create?name=web", service.to_string().as_bytes()).unwrap().status, 201);
    engine.does("POST", "/containers/web/start", &[204]);
    let look = "for i in 1 2 3 4 5 6 7 8 9; do wget -q -O - http://web/ && exit; sleep 0.2; done; exit 1";
    let (code, output) = run(&engine, json!({"Cmd": ["sh", "-c", look], "HostConfig": {"NetworkMode": "n"}}));
    assert_eq!((code, output.trim()), (0, "hello"));
    let (code, _) = run(&engine, json!({"Cmd": ["sh", "-c", "wget -q -T 2 -O - http://web/"], "HostConfig": {"NetworkMode": "bridge"}}));
    assert_ne!(code, 0, "another network sees it");
    let inside = engine.beside(std::path::Path::new("/bin/cat")).arg("/proc/net/dev").output().unwrap();
    assert!(String::from_utf8_lossy(&inside.stdout).contains("docker0"), "{inside:?}");
    assert_eq!(engine.inspect("web")["State"]["Running"], true);
    // dockerd is killed, and comes back to what it had.
    engine.kill9();
    assert!(!engine.answers());
    engine.restart();
    assert_eq!(run(&engine, json!({"Cmd": ["true"]})).0, 0);
    let (pid, cgroups) = (engine.pid(), engine.cgroups());
    assert!(!cgroups.is_empty());
    let processes = engine.processes();
    assert!(processes.len() >= 2, "{processes:?}");
    drop(engine);
    let alive: Vec<_> = processes.iter().filter(|(pid, _)| std::path::Path::new(&format!("/proc/{pid}/exe")).exists()).collect();
    assert!(alive.is_empty() && !std::path::Path::new(&format!("/proc/{pid}/exe")).exists(), "{alive:?}");
    let left: Vec<_> = cgroups.iter().filter(|path| path.exists()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn ways_lead_from_the_engines_network_to_the_machines_and_back() {
    let Some(engine) = Engine::shared() else { return };
    let here = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = here.local_addr().unwrap().port();
    engine.reach(port);
    // Out of the engine's network, through its 127.0.0.1, and back in through a port of the machine's.
    let way = engine.expose(port);
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = here.accept().unwrap();
        let mut text = [0; 4];
        stream.read_exact(&mut text).unwrap();
        stream.write_all(&text).unwrap();
    });
    let mut stream = TcpStream::connect(("127.0.0.1", way)).unwrap();
    stream.write_all(b"ping").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "ping");
    answering.join().unwrap();
}
