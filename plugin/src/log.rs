//! What the plugin says about its work: on stderr, and in the file `logFile`.

use std::env;
use std::fmt::Display;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path};
use std::time::Instant;

use serde::Deserialize;
use serde_json::Value;
use tracing::Span;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// How much is said, from little to much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// What failed.
    Error,
    /// And what may surprise.
    Warning,
    /// And a line for each operation.
    Info,
    /// And one for each of its steps.
    Debug,
}

/// Begins to log as the configuration on `stdin` asks, however bad it is
/// otherwise: failures to read it are to be logged, too. A log that cannot be
/// written is a line on stderr and fails nothing.
pub(crate) fn start(stdin: &[u8]) {
    let object: Value = serde_json::from_slice(stdin).unwrap_or_default();
    let path = object["logFile"].as_str().map(Path::new);
    // Runtimes hand stderr to their own logs, or to somebody's terminal.
    let default = path.map_or(Level::Warning, |_| Level::Info);
    let level = Level::deserialize(&object["logLevel"]).unwrap_or(default);
    let (file, failure) = match path.map(open).transpose() {
        Ok(file) => (file, None),
        Err(error) => (None, Some(error)),
    };
    let stderr = fmt::layer()
        .without_time()
        .with_target(false)
        .with_ansi(false)
        .log_internal_errors(false)
        .with_writer(io::stderr);
    // It writes a line by one call, so that those of others do not cut it.
    let file = file.map(|file| {
        fmt::layer()
            .with_target(false)
            .with_ansi(false)
            .with_writer(file)
    });
    tracing_subscriber::registry()
        .with(LevelFilter::from(level))
        .with(stderr)
        .with(file)
        .init();
    if let Some(failure) = failure {
        tracing::warn!("write to logFile {}: {failure}", object["logFile"]);
    }
}

/// What each line is about, at the level that is always on. The variables are
/// not checked yet; the log writes them escaped.
pub(crate) fn operation(verb: &str) -> Span {
    let variable = |name| env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    tracing::error_span!(
        "sluice",
        verb,
        container = variable("CNI_CONTAINERID"),
        ifname = variable("CNI_IFNAME"),
    )
}

/// Whether a file can be the log: no path that depends on where we are run.
///
/// # Errors
/// The rule in words.
pub(crate) fn check_path(path: &Path) -> Result<(), &'static str> {
    let mut parts = path.components();
    if path.is_absolute() && parts.all(|part| part != Component::ParentDir) {
        return Ok(());
    }
    Err("must be an absolute path without '..'")
}

/// Does a step, and says at level debug how long it took.
pub(crate) fn timed<T, E: Display>(
    step: impl Display,
    run: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    let start = Instant::now();
    let result = run();
    let took = start.elapsed();
    match &result {
        Ok(_) => tracing::debug!(?took, "{step}"),
        Err(error) => tracing::debug!(?took, error = error.to_string(), "{step}"),
    }
    result
}

fn open(path: &Path) -> io::Result<File> {
    check_path(path).map_err(io::Error::other)?;
    let file = File::options()
        .append(true)
        .create(true)
        .mode(0o640)
        // A FIFO without a reader must not hold up a DEL.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(file)
}

impl From<Level> for LevelFilter {
    fn from(level: Level) -> Self {
        match level {
            Level::Error => Self::ERROR,
            Level::Warning => Self::WARN,
            Level::Info => Self::INFO,
            Level::Debug => Self::DEBUG,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_plain_files_at_plain_paths_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("sluice.log");
        let mode = open(&log).unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & !0o640, 0o100_000, "{mode:o}");
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for bad in [
            "sluice.log".into(),
            folder.path().join("../sluice.log"),
            folder.path().to_owned(),
            folder.path().join("absent/sluice.log"),
            fifo,
        ] {
            assert!(open(&bad).is_err(), "{}", bad.display());
        }
    }

    #[test]
    fn levels_have_their_usual_names() {
        for (name, level) in [
            ("error", LevelFilter::ERROR),
            ("warning", LevelFilter::WARN),
            ("info", LevelFilter::INFO),
            ("debug", LevelFilter::DEBUG),
        ] {
            let read = Level::deserialize(Value::from(name)).unwrap();
            assert_eq!(LevelFilter::from(read), level);
        }
        let error = Level::deserialize(Value::from("loud")).unwrap_err();
        assert!(error.to_string().contains("`warning`"), "{error}");
    }
}
