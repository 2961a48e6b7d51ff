//! The standby of a local server: the place where it is kept, and the ways by which one comes to be, whatever the
//! engine: the standby that runs is used, else the data directory that is there, else a copy of the primary's is
//! made. All of it happens while the primary serves; nobody is held.

use super::super::{ProviderError, QueryError, ServerSession};
use super::copy::directory_bytes;
use super::data_dir::DataDir;
use super::files::Home;
use super::process::Process;
use super::{blocking, engine, fence};
use crate::backend::{Capacity, Endpoint};
use nix::sys::signal::Signal;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often a standby is asked how far it is, while nobody waits for it.
pub(super) const LOOK: Duration = Duration::from_millis(50);
/// For an answer of a standby, which has nothing else to do.
pub(super) const LOGIN_PATIENCE: Duration = Duration::from_secs(10);
/// How long a standby may receive nothing, as when its primary was just started again.
const SILENT_MAX: Duration = Duration::from_secs(5);
/// A standby is level when it has replayed what the primary had written so short a time ago.
pub(super) const LEVEL: Duration = Duration::from_secs(1);
/// A standby made of the last primary that does not stream by then is made anew.
const FOLLOW_PATIENCE: Duration = Duration::from_secs(15);
/// For the stop of a standby, which has little to write.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// How long it may take to end when it is killed.
const KILLED_PATIENCE: Duration = Duration::from_secs(10);

/// A standby that was ready when it was last looked at.
pub(super) struct Standby {
    pub(super) home: Home,
    pub(super) process: Process,
    pub(super) capacity: Capacity,
    pub(super) started_at: String,
    /// Logged in ahead, so that the switch need not.
    pub(super) session: Box<dyn ServerSession>,
}

/// For `status`.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    /// What the standby is doing.
    pub(super) doing: String,
    /// Its data directory on disk.
    pub(super) bytes: Option<u64>,
    /// How long the last one took until it was level, and how it was made.
    pub(super) made: Option<(Duration, &'static str)>,
}

/// Where the standby is kept.
#[derive(Default)]
pub(super) struct Slot {
    told: Mutex<Told>,
    /// Held while a standby is made or promoted.
    pub(super) standby: tokio::sync::Mutex<Option<Standby>>,
}

impl Slot {
    /// What `status` tells of it.
    pub(super) fn told(&self) -> Told {
        let mut told = self.told.lock().clone();
        if let Ok(standby) = self.standby.try_lock()
            && standby.as_ref().is_some_and(|s| !s.process.alive())
        {
            "ended: the next change of capacity starts it again".clone_into(&mut told.doing);
        }
        told
    }

    /// Where the standby that is ready listens, and which start of it that is.
    pub(super) fn successor(&self, data_dir: &DataDir) -> Option<(Endpoint, String)> {
        let standby = self.standby.try_lock().ok()?;
        let ready = standby.as_ref().filter(|s| s.process.alive())?;
        Some((data_dir.endpoint_of(ready.home), ready.started_at.clone()))
    }

    pub(super) fn say(&self, doing: String) {
        self.told.lock().doing = doing;
    }
}

/// The primary that a standby is to follow.
pub(super) struct Followed<'a> {
    data_dir: &'a DataDir,
    process: Option<Process>,
}

impl<'a> Followed<'a> {
    pub(super) fn new(data_dir: &'a DataDir) -> Self {
        Self {
            data_dir,
            process: None,
        }
    }

    /// A standby would wait in vain for one that is gone.
    pub(super) fn see_that_it_runs(&mut self) -> Result<(), ProviderError> {
        if !self.process.is_some_and(|process| process.alive()) {
            // It may have been started again.
            self.process = engine::find(self.data_dir, self.data_dir.primary())?;
        }
        match self.process {
            Some(_) => Ok(()),
            None => Err(ProviderError::Server(
                "the server that a standby was to follow is gone".to_owned(),
            )),
        }
    }
}

/// How far a standby is.
pub(super) struct Progress {
    /// It receives what the primary writes.
    pub(super) streaming: bool,
    /// It has replayed up to where it was asked for.
    pub(super) has_it: bool,
    /// How far it is behind, for people; or what keeps it.
    pub(super) behind: String,
}

/// Makes an engine's standbys.
pub(super) trait Maker: Send + Sync + 'static {
    /// A position in the log.
    type Position: Send + Sync;

    fn slot(&self) -> &Slot;

    fn data_dir(&self) -> &Arc<DataDir>;

    /// How long a standby may take until it is level with the primary, once its data is there.
    fn catch_up(&self) -> Duration;

    /// Ends what an earlier proxy began on the primary and nobody waits for.
    fn tidy(&self, primary: &Endpoint) -> impl Future<Output = Result<(), ProviderError>> + Send;

    /// The standby that runs in `home` as it should, or `None`.
    fn running(
        &self,
        home: Home,
        to: Capacity,
    ) -> impl Future<Output = Result<Option<Standby>, ProviderError>> + Send;

    /// Starts the standby and waits until it receives what the primary writes.
    fn follow(
        &self,
        primary: &Endpoint,
        home: Home,
        to: Capacity,
        deadline: Instant,
    ) -> impl Future<Output = Result<Standby, ProviderError>> + Send;

    /// How far the primary's log has been written.
    fn written(
        &self,
        primary: &Endpoint,
    ) -> impl Future<Output = Result<Self::Position, ProviderError>> + Send;

    /// How far the standby is.
    fn progress(
        &self,
        standby: &mut Standby,
        written: &Self::Position,
    ) -> impl Future<Output = Result<Progress, QueryError>> + Send;

    /// Copies the primary's data into `home`, beside its place first.
    fn copy(
        &self,
        primary: &Endpoint,
        home: Home,
    ) -> impl Future<Output = Result<(), ProviderError>> + Send;
}

/// Sees to it that a standby at `to` follows the primary at `primary` and is level with it.
pub(super) async fn ready(
    maker: &impl Maker,
    primary: &Endpoint,
    to: Capacity,
) -> Result<(), ProviderError> {
    let mut standby = maker.slot().standby.lock().await;
    replace(maker, &mut standby, primary, to).await
}

/// The same with a new copy of the primary's data, whatever is there.
pub(super) async fn ready_anew(
    maker: &impl Maker,
    primary: &Endpoint,
    to: Capacity,
) -> Result<(), ProviderError> {
    let mut standby = maker.slot().standby.lock().await;
    *standby = None;
    let home = maker.data_dir().primary().other();
    see_that_the_last_promotion_is_kept(maker).await?;
    let made = async {
        stop(maker.data_dir(), home).await?;
        make_copy(maker, primary, to, Instant::now()).await
    };
    tell(maker, &mut standby, to, made.await)
}

/// [`ready`], unless one is: it may be that of an event under way.
pub(super) async fn ready_if_none(
    maker: &impl Maker,
    primary: &Endpoint,
    capacity: Capacity,
) -> Result<(), ProviderError> {
    let mut standby = maker.slot().standby.lock().await;
    if standby.as_ref().is_some_and(|s| s.process.alive()) {
        return Ok(());
    }
    replace(maker, &mut standby, primary, capacity).await
}

async fn replace(
    maker: &impl Maker,
    standby: &mut Option<Standby>,
    primary: &Endpoint,
    to: Capacity,
) -> Result<(), ProviderError> {
    *standby = None;
    let made = make_ready(maker, primary, to).await;
    tell(maker, standby, to, made)
}

fn tell(
    maker: &impl Maker,
    standby: &mut Option<Standby>,
    to: Capacity,
    made: Result<Standby, ProviderError>,
) -> Result<(), ProviderError> {
    match made {
        Ok(ready) => {
            let doing = format!("capacity {to}, follows the server and is level with it");
            maker.slot().say(doing);
            *standby = Some(ready);
            Ok(())
        }
        Err(error) => {
            maker.slot().say(format!("not ready: {error}"));
            Err(error)
        }
    }
}

/// Such a standby may be the only one that has the last writes.
fn see_that_none_is_to_be_promoted(maker: &impl Maker) -> Result<(), ProviderError> {
    let data_dir = maker.data_dir();
    match data_dir.intent()? {
        Some(intent) if intent.pending(data_dir.primary()).is_some() => Err(ProviderError::Server(
            "the last one was to be promoted, and it is not known yet how that ended".to_owned(),
        )),
        _ => Ok(()),
    }
}

/// Nothing becomes of the last primary before it is on disk that it is none.
async fn see_that_the_last_promotion_is_kept(maker: &impl Maker) -> Result<(), ProviderError> {
    see_that_none_is_to_be_promoted(maker)?;
    blocking(maker.data_dir(), DataDir::keep_promotion).await
}

async fn make_ready(
    maker: &impl Maker,
    primary: &Endpoint,
    to: Capacity,
) -> Result<Standby, ProviderError> {
    let data_dir = maker.data_dir();
    let home = data_dir.primary().other();
    let begun = Instant::now();
    see_that_the_last_promotion_is_kept(maker).await?;
    maker.tidy(primary).await?;
    let same_files = blocking(data_dir, move |d| fence::same_configuration(d, home)).await?;
    let catch_up = begun + maker.catch_up();
    if same_files && let Some(mut ready) = maker.running(home, to).await? {
        match level(maker, primary, &mut ready, catch_up).await {
            Ok(()) => return Ok(ready),
            Err(error) if Instant::now() >= catch_up => return Err(error),
            Err(error) => tracing::warn!(%error, "the standby is started again"),
        }
    }
    stop(data_dir, home).await?;
    if fence::is_standby(data_dir, home) {
        maker.slot().say(format!("capacity {to}, is started"));
        match follow_again(maker, primary, home, to, begun).await {
            Ok(ready) => {
                let how = "from the data directory that was there";
                made(maker, home, begun.elapsed(), how).await;
                return Ok(ready);
            }
            // It follows, and there is too much to do: a copy would take longer still.
            Err(error) if Instant::now() >= catch_up => return Err(error),
            // Of what would a copy be made?
            Err(error) if Followed::new(data_dir).see_that_it_runs().is_err() => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "the standby does not follow: making it anew");
                stop(data_dir, home).await?;
            }
        }
    }
    make_copy(maker, primary, to, begun).await
}

async fn make_copy(
    maker: &impl Maker,
    primary: &Endpoint,
    to: Capacity,
    begun: Instant,
) -> Result<Standby, ProviderError> {
    let home = maker.data_dir().primary().other();
    maker
        .slot()
        .say(format!("capacity {to}, is made: the data is copied"));
    maker.copy(primary, home).await?;
    let deadline = Instant::now() + maker.catch_up();
    let mut ready = maker.follow(primary, home, to, deadline).await?;
    level(maker, primary, &mut ready, deadline).await?;
    made(maker, home, begun.elapsed(), "by a copy of the data").await;
    Ok(ready)
}

/// Starts the standby that is there, which may end at once or soon, and waits until it is level.
async fn follow_again(
    maker: &impl Maker,
    primary: &Endpoint,
    home: Home,
    to: Capacity,
    begun: Instant,
) -> Result<Standby, ProviderError> {
    let mut ready = maker
        .follow(primary, home, to, begun + FOLLOW_PATIENCE)
        .await?;
    level(maker, primary, &mut ready, begun + maker.catch_up()).await?;
    Ok(ready)
}

/// Waits until the standby has replayed what the primary had written at most [`LEVEL`] ago.
async fn level(
    maker: &impl Maker,
    primary: &Endpoint,
    standby: &mut Standby,
    deadline: Instant,
) -> Result<(), ProviderError> {
    let limit = maker.catch_up().as_secs();
    let mut silent_since: Option<Instant> = None;
    loop {
        let asked = Instant::now();
        if asked >= deadline {
            return Err(ProviderError::Server(format!(
                "the standby was not level with the server in {limit} s (catch_up_timeout): ask again when there is \
                 less to do"
            )));
        }
        let written = maker.written(primary).await?;
        loop {
            let progress = maker.progress(&mut *standby, &written).await;
            let now = progress
                .map_err(|e| ProviderError::Server(format!("the standby does not answer: {e}")))?;
            if now.streaming {
                silent_since = None;
            } else if silent_since.get_or_insert_with(Instant::now).elapsed() > SILENT_MAX {
                return Err(ProviderError::Server(format!(
                    "the standby does not receive the server's log: {}",
                    now.behind
                )));
            }
            if now.streaming && now.has_it {
                break;
            }
            if Instant::now() >= deadline {
                return Err(ProviderError::Server(format!(
                    "the standby is {} after {limit} s (catch_up_timeout): ask again when there is less to do",
                    now.behind
                )));
            }
            tokio::time::sleep(LOOK).await;
        }
        if asked.elapsed() <= LEVEL {
            return Ok(());
        }
    }
}

async fn made(maker: &impl Maker, home: Home, took: Duration, how: &'static str) {
    let path = maker.data_dir().data_of(home);
    let bytes = tokio::task::spawn_blocking(move || directory_bytes(&path)).await;
    let mut told = maker.slot().told.lock();
    told.made = Some((took, how));
    told.bytes = bytes.ok();
    let took_ms = took.as_millis();
    tracing::info!(took_ms, how, "a standby is ready");
}

/// Stops what runs in `home`, which has not the primary. One that does not stop is killed: nobody but its primary has
/// written anything there.
pub(super) async fn stop(data_dir: &DataDir, home: Home) -> Result<(), ProviderError> {
    stop_within(data_dir, home, STOP_PATIENCE).await
}

pub(super) async fn stop_within(
    data_dir: &DataDir,
    home: Home,
    patience: Duration,
) -> Result<(), ProviderError> {
    let Some(process) = engine::find(data_dir, home)? else {
        return Ok(());
    };
    engine::stop(data_dir, process)?;
    if process.gone_within(patience).await {
        return Ok(());
    }
    let (pid, log) = (process.pid(), data_dir.log_of(home));
    tracing::warn!(pid, log = %log.display(), "a standby does not stop: it is killed");
    process.signal(Signal::SIGKILL)?;
    if process.gone_within(KILLED_PATIENCE).await {
        return Ok(());
    }
    Err(ProviderError::Server(format!(
        "the standby, process {pid}, does not end: see {}",
        log.display()
    )))
}
