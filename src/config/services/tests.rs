use super::*;

fn mistakes(text: &str) -> Vec<String> {
    match parse(text, "FILE") {
        Err(ConfigError::Mistakes(all)) => all,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_default_has_none_and_its_example_is_right() {
    let none = load(None).expect("valid");
    assert_eq!((none.environment.as_str(), none.services.len()), ("default", 0));
    // What is commented out, but for the sentences.
    let is_key = |line: &&str| line.starts_with('[') || line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
    let example: String = DEFAULTS.lines().filter_map(|l| l.strip_prefix("# ")).filter(is_key).map(|l| format!("{l}\n")).collect();
    let services = parse(&example, "example").expect("the example is valid").services;
    let (name, redis) = &services[0];
    assert_eq!((name.as_str(), redis.ports[0].host, redis.volumes.len()), ("redis", 6379, 2));
    assert!(redis.ports[0].address.is_loopback(), "ports are on the loopback unless asked otherwise");
    let keys = serde_json::to_value(redis).expect("serializes");
    for key in keys.as_object().expect("a map").keys() {
        assert!(example.contains(&format!("\n{key} = ")), "{key} is not in config/services.toml");
    }
}

#[test]
fn every_mistake_is_told_at_once_with_key_value_and_what_is_allowed() {
    let text = r#"
        environment = "Prod!"
        colour = "red"
        [services.a]
        image = "UPPER"
        cpus = 0
        memory = "1MiB"
        user = "root"
        ports = ["80"]
        [services.b]
        imag = "redis"
        [services.c]
        image = "redis"
        volumes = ["../x:/y"]
        secrets = { P = "hunter2secret" }
        depends_on = ["nobody"]
    "#;
    let found = mistakes(text).join("\n");
    for wanted in [
        "environment = \"Prod!\"",
        "colour: no such key",
        "services.a.ports = [\"80\"]: \"80\" is no port",
        "services.b.image: missing",
        "services.b.imag: unknown field",
        "services.c.volumes = [\"../x:/y\"]",
    ] {
        assert!(found.contains(wanted), "{wanted} is not in\n{found}");
    }
    let text = text.replace("ports = [\"80\"]", "").replace("volumes = [\"../x:/y\"]", "");
    let found = mistakes(&text).join("\n");
    for wanted in [
        "services.a.image = \"UPPER\"",
        "services.a.cpus = 0",
        "services.a.memory = 1MiB",
        "services.a.user = \"root\"",
        "services.c.secrets = { P = … }",
        "services.c.depends_on = [\"nobody\"]",
    ] {
        assert!(found.contains(wanted) && !found.contains("hunter2"), "{wanted} is not in\n{found}");
    }
    assert!(mistakes(&text).iter().all(|mistake| mistake.ends_with("(FILE)")));
}

/// A mistake is told to whoever reads the terminal or the log, a password to nobody.
#[test]
fn no_mistake_tells_what_is_beside_it() {
    let service = "[services.db]\nimage = \"postgres\"\n";
    for (line, told) in [
        ("env = { POSTGRES_PASSWORD = \"hunter2\", PORT = 5432 }", "services.db.env.PORT: "),
        ("env = { PIN = 7007007, LIST = [\"hunter2\"] }", "services.db.env.PIN: "),
        ("env = \"hunter2\"", "services.db.env: "),
        ("env = [\"PASSWORD=hunter2\"]", "services.db.env: "),
        ("secrets = { A = \"hunter2\", B = 7007007 }", "services.db.secrets.B: "),
        ("enviroment = { PASSWORD = \"hunter2\" }", "services.db.enviroment: unknown field"),
        ("PASSWORD = \"hunter2\"", "services.db.PASSWORD: unknown field"),
        ("env = { PASSWORD = \"hunter2 }", "line 3: "),
        ("env = { PASSWORD = hunter2 }", "line 3: "),
    ] {
        let found = parse(&format!("{service}{line}\n"), "FILE").expect_err(line).to_string();
        assert!(found.contains(told) && !found.contains("hunter2") && !found.contains("7007007"), "{line}: {found}");
    }
    let found = mistakes("environment = { PASSWORD = \"hunter2\" }").join("\n");
    assert!(found.contains("environment") && !found.contains("hunter2"), "{found}");
}

#[test]
fn services_stand_after_those_that_they_depend_on() {
    let one = |name: &str, after: &str| format!("[services.{name}]\nimage = \"x\"\ndepends_on = [{after}]\n");
    let text = one("a", "\"b\", \"c\"") + &one("b", "\"c\"") + &one("c", "");
    let order: Vec<String> = parse(&text, "FILE").expect("valid").services.into_iter().map(|(name, _)| name).collect();
    assert_eq!(order, ["c", "b", "a"]);
    let circle = one("a", "\"b\"") + &one("b", "\"a\"") + &one("c", "");
    assert_eq!(mistakes(&circle), ["services: a, b depend on each other in a circle (FILE)"]);
}

#[test]
fn one_port_is_for_one_service() {
    let one = |name: &str, port: &str| format!("[services.{name}]\nimage = \"x\"\nports = [{port:?}]\n");
    assert_eq!(mistakes(&(one("a", "80:1") + &one("b", "127.0.0.1:80:2"))).len(), 1);
    assert!(parse(&(one("a", "80:1") + &one("b", "80:2/udp") + &one("c", "0.0.0.0:80:2")), "FILE").is_ok());
    for (text, shown) in [("6379:1", "127.0.0.1:6379:1"), ("[::1]:53:53/udp", "[::1]:53:53/udp")] {
        assert_eq!(Port::try_from(text.to_owned()).expect("a port").to_string(), shown);
    }
}
