//! What an event does next: pure decisions over facts, so that every row can be tested.
//!
//! Two clocks, never confused: the timeout bounds the search for a scaling point; `max_hold` bounds how
//! long clients are held in one attempt. Between attempts clients are left alone for so long that all
//! holds together take at most a twentieth of the search.

use std::time::Duration;

/// Held time is at most this part of the search: one in this many.
const HELD_SHARE: u32 = 20;

/// Shortest pause between two attempts.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// What is known while an event looks for a scaling point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Search {
    /// Since the event began to look for a scaling point.
    pub searched: Duration,
    /// How long it may search.
    pub timeout: Duration,
    /// End what is in the way at the timeout.
    pub force: bool,
    /// A session has a blocker that will not pass by itself within a hold.
    pub blocker_known: bool,
    /// Until the next attempt may begin.
    pub pause: Duration,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Leave everybody alone, then look again.
    Wait,
    /// Try to hold.
    Hold,
    /// The timeout is over: hold, and end what is left.
    Force,
    /// The timeout is over: everything stays as it was.
    RollBack,
}

/// The next thing to do.
pub fn search(facts: &Search) -> Next {
    if facts.searched >= facts.timeout {
        if facts.force {
            Next::Force
        } else {
            Next::RollBack
        }
    } else if facts.blocker_known || !facts.pause.is_zero() {
        Next::Wait
    } else {
        Next::Hold
    }
}

/// What is known during a hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settle {
    /// Since the hold began.
    pub held: Duration,
    /// How long it may last.
    pub max_hold: Duration,
    /// Server connections of sessions on which something could still be written.
    pub left: usize,
    /// A session found a blocker that will not pass.
    pub blocked: bool,
    /// End what is left when the time is over.
    pub force: bool,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// Wait for the rest.
    Wait,
    /// All are detached.
    CutOver,
    /// Release, and try again later.
    GiveUp,
    /// End the sessions that are left.
    EndTheRest,
}

/// The next thing to do.
pub fn settle(facts: &Settle) -> Settled {
    if facts.left == 0 {
        return Settled::CutOver;
    }
    let over = facts.held >= facts.max_hold;
    match (facts.force, over, facts.blocked) {
        (true, true, _) => Settled::EndTheRest,
        (false, true, _) | (false, _, true) => Settled::GiveUp,
        (_, false, _) => Settled::Wait,
    }
}

/// How long to leave clients alone after a hold of this length that came to nothing.
pub fn pause_after(held: Duration) -> Duration {
    (held * (HELD_SHARE - 1)).max(PAUSE_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn searching() -> Search {
        Search {
            searched: S(1),
            timeout: S(10),
            force: false,
            blocker_known: false,
            pause: Duration::ZERO,
        }
    }

    #[test]
    fn safety_04_nobody_is_held_while_a_blocker_is_known() {
        assert_eq!(search(&searching()), Next::Hold);
        assert_eq!(
            search(&Search {
                blocker_known: true,
                ..searching()
            }),
            Next::Wait
        );
        assert_eq!(
            search(&Search {
                pause: S(1),
                ..searching()
            }),
            Next::Wait
        );
    }

    #[test]
    fn at_the_timeout_it_rolls_back_or_forces() {
        let over = Search {
            searched: S(10),
            blocker_known: true,
            ..searching()
        };
        assert_eq!(search(&over), Next::RollBack);
        assert_eq!(
            search(&Search {
                force: true,
                ..over
            }),
            Next::Force
        );
    }

    #[test]
    fn safety_04_a_hold_ends_at_its_limit_or_at_a_blocker() {
        let held = Settle {
            held: S(0),
            max_hold: S(1),
            left: 3,
            blocked: false,
            force: false,
        };
        assert_eq!(settle(&held), Settled::Wait);
        assert_eq!(settle(&Settle { left: 0, ..held }), Settled::CutOver);
        assert_eq!(
            settle(&Settle {
                blocked: true,
                ..held
            }),
            Settled::GiveUp
        );
        assert_eq!(settle(&Settle { held: S(1), ..held }), Settled::GiveUp);
        let force = Settle {
            force: true,
            blocked: true,
            ..held
        };
        assert_eq!(
            settle(&force),
            Settled::Wait,
            "first it settles, forced or not"
        );
        assert_eq!(
            settle(&Settle {
                held: S(1),
                ..force
            }),
            Settled::EndTheRest
        );
    }

    proptest! {
        /// However the attempts go, held time stays within its share of the search.
        #[test]
        fn holds_are_a_small_part_of_the_search(holds in prop::collection::vec(0_u64..2_000, 1..50)) {
            let (mut held, mut total) = (Duration::ZERO, Duration::ZERO);
            for millis in holds {
                let hold = Duration::from_millis(millis);
                held += hold;
                total += hold + pause_after(hold);
            }
            prop_assert!(held * HELD_SHARE <= total);
        }

        #[test]
        fn every_row_decides(searched in 0_u64..20, blocker in any::<bool>(), force in any::<bool>()) {
            let facts = Search { searched: S(searched), blocker_known: blocker, force, ..searching() };
            let next = search(&facts);
            prop_assert_eq!(next == Next::Hold, searched < 10 && !blocker);
        }
    }
}
