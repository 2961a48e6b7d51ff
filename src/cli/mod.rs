//! The command line: what can be typed, and the exit code that comes of it.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage or configuration; `scale` adds 3 rolled back and 4 failed.

mod check;
mod client;
mod commands;
mod render;
mod watch;

use crate::app::{self, AppError, DevOptions};
use crate::config::{Config, parse_duration};
use crate::observe::log::{self, LogFormat};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// A PostgreSQL proxy that moves live sessions between servers.
#[derive(Debug, Parser)]
#[command(name = "slackwater", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy
    Serve {
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        log: LogArgs,
    },
    /// Try it without configuration: local servers, a self-made CA, and lines to paste
    Dev {
        /// Directory for servers and state
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
        /// Port for PostgreSQL clients
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
        postgres_port: Option<u16>,
        /// Port for MySQL and MariaDB clients
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
        mysql_port: Option<u16>,
        /// Port of the admin API
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
        admin_port: Option<u16>,
        /// Stop the servers that an earlier `dev` left running, and do nothing else
        #[arg(long, conflicts_with_all = ["postgres_port", "mysql_port", "admin_port"])]
        stop: bool,
        #[command(flatten)]
        log: LogArgs,
    },
    /// Check a configuration and what it names; exit 0, or 2 with line and reason
    Check {
        #[command(flatten)]
        config: ConfigFile,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    #[command(flatten)]
    Client(ClientCommand),
}

/// Commands that ask a running proxy.
#[derive(Debug, Subcommand)]
enum ClientCommand {
    /// Show all clusters, or one in full
    Status {
        /// Cluster
        cluster: Option<String>,
        #[command(flatten)]
        target: Target,
    },
    /// Show the sessions of a cluster, and what keeps them from being moved
    Sessions {
        /// Cluster
        cluster: String,
        #[command(flatten)]
        target: Target,
    },
    /// Show the scale events of a cluster, newest first
    Events {
        /// Cluster
        cluster: String,
        /// Go on and print each event that ends (and first what is known, oldest first)
        #[arg(long)]
        follow: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Change the capacity of a cluster. On a terminal the event is shown until it ends
    ///
    /// Exit codes of a followed event: 0 completed or forced, 3 rolled back, 4 failed.
    Scale(ScaleArgs),
    /// Stop the server of a cluster until the next request (not in this release)
    Pause {
        /// Cluster
        cluster: String,
        #[command(flatten)]
        target: Target,
    },
    /// Start the server of a paused cluster (not in this release)
    Resume {
        /// Cluster
        cluster: String,
        #[command(flatten)]
        target: Target,
    },
    /// Let requests of a cluster wait
    Hold {
        /// Cluster
        cluster: String,
        /// Release by itself after this time, 1s to 24h
        #[arg(long = "for", value_name = "DURATION", value_parser = seconds)]
        period: Option<Duration>,
        #[command(flatten)]
        target: Target,
    },
    /// End a hold
    Release {
        /// Cluster
        cluster: String,
        #[command(flatten)]
        target: Target,
    },
    /// Read the configuration and the certificates again
    Reload {
        #[command(flatten)]
        target: Target,
    },
    /// Take no new clients, end sessions when they are at rest, and then the proxy (after 30 s at most)
    Drain {
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Args)]
struct ScaleArgs {
    /// Cluster
    cluster: String,
    /// Wanted capacity in ACU
    capacity: u32,
    /// How long to look for a scaling point, 1s to 24h [default: as configured]
    #[arg(long, value_name = "DURATION", value_parser = seconds)]
    timeout: Option<Duration>,
    /// At the timeout, end the sessions in the way and go on
    #[arg(long, conflicts_with = "rollback")]
    force: bool,
    /// At the timeout, leave everything as it was
    #[arg(long)]
    rollback: bool,
    /// Go through the whole event even if the capacity stays the same
    #[arg(long)]
    restart: bool,
    /// Wait for the end of the event, also where output is no terminal
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Args)]
struct ConfigFile {
    /// Configuration file
    #[arg(long = "config", value_name = "FILE", default_value = "proxy.toml")]
    path: PathBuf,
}

#[derive(Debug, Args)]
struct LogArgs {
    /// How log lines look [default: text on a terminal, json elsewhere]
    #[arg(long, value_enum)]
    log_format: Option<Format>,
    /// error, warn, info, debug or trace, or target=level,...
    #[arg(
        long,
        env = "SLACKWATER_LOG",
        default_value = "info",
        value_name = "LEVEL"
    )]
    log_level: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Which proxy to ask, and how to print.
#[derive(Debug, Args)]
struct Target {
    /// Admin API of the proxy
    #[arg(
        long,
        env = "SLACKWATER_ADMIN",
        value_name = "URL",
        default_value = "http://127.0.0.1:7432"
    )]
    admin: String,
    /// File with the token of the admin API
    #[arg(long, env = "SLACKWATER_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A command that did not do what was asked.
#[derive(Debug)]
struct Failure {
    exit: u8,
    /// As in the API's errors.
    code: String,
    message: String,
}

impl Failure {
    fn new(message: impl Into<String>) -> Self {
        Self {
            exit: 1,
            code: "failed".to_owned(),
            message: message.into(),
        }
    }

    /// Wrong usage or configuration.
    fn usage(message: impl Into<String>) -> Self {
        Self {
            exit: 2,
            code: "usage".to_owned(),
            message: message.into(),
        }
    }
}

impl From<std::io::Error> for Failure {
    /// Of the output; other errors are explained where they happen.
    fn from(error: std::io::Error) -> Self {
        // Whoever read the output (head, less) has seen enough.
        let exit = u8::from(error.kind() != std::io::ErrorKind::BrokenPipe);
        Self {
            exit,
            code: "output".to_owned(),
            message: format!("can't write output: {error}"),
        }
    }
}

impl From<AppError> for Failure {
    fn from(error: AppError) -> Self {
        Self::new(error.to_string())
    }
}

/// Runs the program and returns its exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Fails only if the terminal is gone, and then nobody reads it.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let json = match &cli.command {
        Command::Client(command) => command.target().json,
        Command::Check { json, .. } => *json,
        Command::Serve { .. } | Command::Dev { .. } => false,
    };
    match run(cli.command) {
        Ok(exit) => ExitCode::from(exit),
        Err(failure) => {
            if failure.exit != 0 {
                let text = if json {
                    serde_json::json!({ "error": { "code": failure.code, "message": failure.message } })
                        .to_string()
                } else {
                    format!("slackwater: {}", failure.message)
                };
                let _ = writeln!(std::io::stderr(), "{text}");
            }
            ExitCode::from(failure.exit)
        }
    }
}

fn run(command: Command) -> Result<u8, Failure> {
    let mut out = std::io::stdout().lock();
    match command {
        Command::Check { config, json } => check::run(&config.path, json, &mut out),
        Command::Client(command) => {
            let terminal = out.is_terminal();
            commands::run(&command, &mut out, terminal)
        }
        Command::Serve {
            config: ConfigFile { path },
            log,
        } => {
            drop(out);
            let config = Config::load(&path).map_err(|e| Failure::usage(e.to_string()))?;
            start_log(&log)?;
            for warning in &config.warnings {
                tracing::warn!("{}: {warning}", path.display());
            }
            runtime()?.block_on(app::serve(config, path))?;
            Ok(0)
        }
        Command::Dev {
            data,
            postgres_port,
            mysql_port,
            admin_port,
            stop,
            log,
        } => {
            drop(out);
            start_log(&log)?;
            runtime()?.block_on(app::dev(DevOptions {
                data,
                postgres_port,
                mysql_port,
                admin_port,
                stop,
            }))?;
            Ok(0)
        }
    }
}

fn start_log(args: &LogArgs) -> Result<(), Failure> {
    let format = args.log_format.map(|format| match format {
        Format::Text => LogFormat::Text,
        Format::Json => LogFormat::Json,
    });
    log::init(format, &args.log_level).map_err(|e| Failure::usage(e.to_string()))
}

/// For control, the admin API and scale events. Clients are served by `net::workers`.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(format!("can't start the runtime: {e}")))
}

/// A duration of whole seconds, as the API takes it.
fn seconds(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text)?;
    if duration.subsec_nanos() != 0 || !(1..=86_400).contains(&duration.as_secs()) {
        return Err("1s to 24h are possible, in whole seconds".to_owned());
    }
    Ok(duration)
}

impl ClientCommand {
    fn target(&self) -> &Target {
        match self {
            Self::Scale(ScaleArgs { target, .. })
            | Self::Status { target, .. }
            | Self::Sessions { target, .. }
            | Self::Events { target, .. }
            | Self::Pause { target, .. }
            | Self::Resume { target, .. }
            | Self::Hold { target, .. }
            | Self::Release { target, .. }
            | Self::Reload { target }
            | Self::Drain { target } => target,
        }
    }
}

#[cfg(test)]
mod tests;
