//! Events (`CREATE EVENT`) over a switch: only the primary runs them. Those that a standby received are switched off there,
//! whatever they were, so it is told which are to run.

use super::super::super::{QueryError, Rows, ServerSession};
use super::accounts::{identifier, literal};

/// An event that is to run.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(in super::super) struct Event {
    schema: String,
    name: String,
}

/// Schema, name and account of events in `status`.
fn events_sql(condition: &str) -> String {
    format!(
        "SELECT EVENT_SCHEMA, EVENT_NAME, DEFINER FROM information_schema.EVENTS WHERE {condition} ORDER BY 1, 2"
    )
}

/// The events that a primary runs.
pub(super) async fn running(session: &mut dyn ServerSession) -> Result<Vec<Event>, QueryError> {
    let rows = session.query(&events_sql("STATUS = 'ENABLED'")).await?;
    rows.into_iter()
        .map(|row| {
            let [Some(schema), Some(name), _] = <[_; 3]>::try_from(row).unwrap_or_default() else {
                return Err(QueryError::Other("its events can't be read".to_owned()));
            };
            Ok(Event { schema, name })
        })
        .collect()
}

/// Gives a promoted server's events the state that they had on the old primary.
pub(super) async fn restore(
    session: &mut dyn ServerSession,
    to_run: &[Event],
    scheduler: bool,
) -> Result<(), QueryError> {
    // Both names of the state: MySQL has changed it.
    let received = events_sql("STATUS IN ('SLAVESIDE_DISABLED', 'REPLICA_SIDE_DISABLED')");
    for sql in statements(&session.query(&received).await?, to_run) {
        // One that its account can't have any more is no reason to be without a server.
        if let Err(error) = session.query(&sql).await {
            tracing::error!(%error, sql, "an event's state could not be restored after the switch");
        }
    }
    if scheduler {
        session.query("SET GLOBAL event_scheduler = ON").await?;
    }
    Ok(())
}

fn statements(received: &Rows, to_run: &[Event]) -> Vec<String> {
    let statement = |row: &Vec<Option<String>>| {
        let [Some(schema), Some(name), Some(definer)] = row.as_slice() else {
            return None;
        };
        let runs = to_run
            .iter()
            .any(|e| e.schema == *schema && e.name == *name);
        let state = if runs { "ENABLE" } else { "DISABLE" };
        // Whoever alters an event becomes its account unless he names another one.
        let (user, host) = definer.rsplit_once('@')?;
        Some(format!(
            "ALTER DEFINER = {}@{} EVENT {}.{} {state}",
            literal(user),
            literal(host),
            identifier(schema),
            identifier(name)
        ))
    };
    received.iter().filter_map(statement).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_get_back_their_state_and_keep_their_account() {
        let row = |name: &str| {
            vec![
                Some("d".to_owned()),
                Some(name.to_owned()),
                Some("a@b@%".to_owned()),
            ]
        };
        let to_run = [Event {
            schema: "d".to_owned(),
            name: "on`e".to_owned(),
        }];
        assert_eq!(
            statements(&vec![row("on`e"), row("two")], &to_run),
            [
                "ALTER DEFINER = 'a@b'@'%' EVENT `d`.`on``e` ENABLE",
                "ALTER DEFINER = 'a@b'@'%' EVENT `d`.`two` DISABLE"
            ]
        );
    }
}
