//! Which build this is. The same sources and tools make the same words: there is no date among them.

/// The version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Commit of the sources; `unknown` when they were no checkout and `WINDLASS_COMMIT` did not name it.
pub const COMMIT: &str = env!("WINDLASS_BUILD_COMMIT");

/// What `--version` says.
pub const LONG: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\ncommit: ",
    env!("WINDLASS_BUILD_COMMIT"),
    "\nrustc: ",
    env!("WINDLASS_BUILD_RUSTC"),
    "\ntarget: ",
    env!("WINDLASS_BUILD_TARGET"),
    "\nprofile: ",
    env!("WINDLASS_BUILD_PROFILE"),
    "\nfeatures: ",
    env!("WINDLASS_BUILD_FEATURES"),
);
