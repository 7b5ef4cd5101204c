//! The `windlass` command: arguments → configuration → telemetry → one role → exit code.

use std::process::ExitCode;
use std::time::Duration;

use windlass::cli::{self, Cli, Exit, Global, Verb, WorkerArgs};
use windlass::execute::docker::reap::orphans;
use windlass::telemetry::causes;
use windlass::worker::WorkerError;
use windlass::worker::http::Endpoint;
use windlass::{shutdown, supervisor, telemetry, worker};

fn main() -> ExitCode {
    // Before anything is read: what this process knows (credentials, other tenants' tasks) is not for tasks of the same
    // user, neither in /proc nor by a core dump. A new program, such as the supervisor, decides for itself.
    // The page size first: kernels before 6.4 tell it by a file that such a process may not read, unless it is root's.
    let _ = rustix::param::page_size();
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    let Cli { global, verb } = cli::parse();
    match verb {
        // Without a runtime: it has one thread, and forks.
        Verb::Supervisor { arguments } => supervisor::main(&arguments),
        Verb::ReapContainers { arguments } => orphans::main(&arguments),
        Verb::Worker(args) => on_runtime(run_worker(global, args)),
        Verb::Operate(operation) => on_runtime(async { cli::operate(global, operation).await.into() }),
        Verb::Dev(args) => on_runtime(async move { windlass::dev::run(&global, &args).await.into() }),
        // Becomes another program.
        Verb::Guard(args) => windlass::dev::guard(&args).into(),
    }
}

fn on_runtime(role: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(role);
            // Blocking reads of standard input must not hold the process.
            runtime.shutdown_timeout(Duration::from_millis(100));
            code
        }
        Err(error) => fail(&format!("cannot start the runtime: {error}"), Exit::Error),
    }
}

fn fail(message: &str, exit: Exit) -> ExitCode {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "windlass: {message}");
    exit.into()
}

async fn run_worker(global: Global, args: WorkerArgs) -> ExitCode {
    let mut config = match global.load_config() {
        Ok(config) => config,
        Err(error) => return fail(&error.to_string(), Exit::Usage),
    };
    let as_read = config.clone();
    if let Some(id) = args.id {
        config.worker.id = id.to_string();
    }
    config.cgroup.allow_unlimited |= args.allow_unlimited;
    if let Err(error) = telemetry::init(&config.log) {
        return fail(&error.to_string(), Exit::Usage);
    }
    let shutdown = match shutdown::on_signals(Duration::from_secs_f64(config.worker.drain_timeout_s)) {
        Ok(shutdown) => shutdown,
        Err(error) => return fail(&format!("cannot listen for signals: {error}"), Exit::Error),
    };
    if let Err(error) = telemetry::on_hangup(as_read, move || global.load_config()) {
        return fail(&format!("cannot listen for signals: {error}"), Exit::Error);
    }
    let endpoint = match Endpoint::bind(config.http.listen).await {
        Ok(endpoint) => endpoint,
        Err(error) => return fail(&causes(&error).to_string(), Exit::Usage),
    };
    match worker::run(config, shutdown, endpoint).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ (WorkerError::Instance(_) | WorkerError::Gpu(_) | WorkerError::NothingToServe(_))) => {
            fail(&causes(&error).to_string(), Exit::Usage)
        }
        Err(error) => fail(&causes(&error).to_string(), Exit::Error),
    }
}
