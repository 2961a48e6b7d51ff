//! COM_CHANGE_USER: the client proves anew who it is, to Slackwater, and its session goes on as that user on a server
//! connection of that user. What it held is gone, as it would be on one connection.

use super::super::end::End;
use super::super::leg::Leg;
use super::super::session::Session;
use super::super::state::Profile;
use super::authentication::{Challenge, authenticate};
use super::engine::Login;
use super::errors;
use super::front::Mysql;
use super::handshake::Arrival;
use super::login::{decoy, find};
use super::serve::{self, open};
use crate::auth::mysql::Credential;
use crate::backend::mysql::connect::Request;
use crate::session::mysql::machine::Machine;
use crate::wire::frame::{FrameError, Header as _};
use crate::wire::mysql::auth::ChangeUser;
use crate::wire::mysql::packet::{HEADER_LEN, Header};
use crate::wire::mysql::reply::{OK, OkPacket};
use bytes::{Buf, Bytes};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long it may take.
const CHANGE_MAX: Duration = Duration::from_secs(30);

/// A client that has proven itself anew, and what it asks for now.
struct Proven {
    arrival: Box<Arrival>,
    request: Request,
    credential: Credential,
}

impl Session<Mysql> {
    /// The client's next packet is COM_CHANGE_USER, and nothing is owed.
    pub(super) async fn change_user(&mut self) -> Result<(), End> {
        let deadline = Instant::now() + CHANGE_MAX;
        let payload = self.take_packet(deadline).await?;
        let Proven {
            arrival,
            request,
            credential,
        } = self.prove_again(&payload, deadline).await?;
        self.leave_for_good().await;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let old = self.profile();
        let database = request.database.clone().unwrap_or_default();
        let profile = Arc::new(Profile {
            cluster: Arc::clone(&old.cluster),
            shared: Arc::clone(&old.shared),
            metrics: old.shared.metrics.cluster(&old.cluster.name),
            user: text(&request.user),
            database: text(&database),
            client: old.client,
            login: Login {
                entrance: Arc::clone(&old.login.entrance),
                entry: old.login.entry,
                config: Arc::clone(&old.login.config),
                who: Arc::new((request, credential)),
            },
        });
        let opened = match open(&profile, arrival.stream(), deadline).await {
            Ok(opened) => opened,
            Err(None) => return Err(End::ClientGone),
            Err(Some(error)) => {
                serve::refuse_login(arrival, &error, &profile.cluster).await;
                return Err(End::ClientGone);
            }
        };
        let status = opened.greeting.status;
        let ok = OkPacket {
            first: OK,
            affected_rows: 0,
            last_insert_id: 0,
            status,
            warnings: 0,
            info: &[],
            session: &[],
        };
        let mut packets = arrival.packets;
        let told = packets.send(|out| ok.put(out)).await;
        told.map_err(|_| End::ClientGone)?;
        let (stream, buffered) = packets.into_parts();
        let machine = Machine::new(opened.greeting.grammar, &database, status);
        let front = Mysql::new(machine, Arc::clone(&profile.cluster) as _, &profile.user);
        self.become_user(front, profile, Leg::new(stream, buffered), opened);
        Ok(())
    }

    /// Asks the client for its proof. One that fails was told, and is gone, as MySQL does it.
    async fn prove_again(&mut self, payload: &[u8], deadline: Instant) -> Result<Proven, End> {
        let login = &self.profile().login;
        let (request, _) = &*login.who;
        let (entrance, at) = (Arc::clone(&login.entrance), login.entry);
        let (config, offer) = (Arc::clone(&login.config), self.profile().cluster.offer());
        let (Some(entry), Some(offer)) = (entrance.entries.get(at), offer) else {
            return Err(End::Internal("a session without its cluster"));
        };
        let wanted = ChangeUser::parse(payload, request.capabilities)
            .map_err(|_| End::ClientGarbage(FrameError::Truncated))?;
        let own = Some(wanted.attributes.clone()).filter(|a| !a.is_empty());
        let request = Request {
            user: wanted.user.clone(),
            database: Some(wanted.database.clone()).filter(|d| !d.is_empty()),
            charset: wanted
                .charset
                .map_or(request.charset, |c| c.to_le_bytes()[0]),
            attributes: own.unwrap_or_else(|| request.attributes.clone()),
            ..request.clone()
        };
        let nonce = super::handshake::nonce().map_err(End::ServerLost)?;
        let (stream, buffered) = self.take_client().into_parts();
        let mut arrival =
            Arrival::again(stream, buffered, (0, &request), nonce, config.mock_secret);
        let known = match find(&arrival, entry, deadline).await {
            Ok(known) => known,
            Err(None) => return Err(End::ClientGone),
            Err(Some(error)) => {
                tracing::warn!(%error, "verifiers can't be read");
                let text = "the database server is not available: the proxy could not ask it for the user's verifier";
                arrival.refuse(&errors::no_server(text)).await;
                return Err(End::ClientGone);
            }
        };
        let challenge = Challenge {
            plugin: offer.plugin,
            decoy_thousands: decoy(entry, known.as_ref()),
            secret: known.and_then(|known| known.secret),
            passwords: &entry.passwords,
            rsa: &config.rsa,
        };
        let work = tokio::time::timeout_at(deadline, authenticate(&mut arrival, challenge)).await;
        let Ok(Ok(credential)) = work else {
            return Err(End::ClientGone);
        };
        Ok(Proven {
            arrival,
            request,
            credential,
        })
    }

    /// Takes the client's next packet, whole.
    async fn take_packet(&mut self, deadline: Instant) -> Result<Bytes, End> {
        loop {
            let carry = self.client_carry();
            if let Ok(Some(header)) = Header::cut(carry)
                && carry.len() >= header.whole_len()
            {
                let mut packet = carry.split_to(header.whole_len());
                packet.advance(HEADER_LEN);
                return Ok(packet.freeze());
            }
            self.read_client(deadline).await?;
        }
    }
}
