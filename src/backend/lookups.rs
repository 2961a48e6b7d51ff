//! Look-ups of one key that wait for their turn are made once for all of them. Nobody is given an answer to a
//! question that was asked before their own: who comes while a look-up runs waits for the next one.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use tokio::sync::watch;

/// A line of look-ups, one running at a time.
#[derive(Debug)]
pub struct Lookups<T> {
    /// Those that have not begun.
    waiting: Mutex<HashMap<String, watch::Receiver<Option<T>>>>,
    turn: tokio::sync::Mutex<()>,
}

impl<T> Default for Lookups<T> {
    fn default() -> Self {
        Self {
            waiting: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }
}

/// A look-up that has not begun; nobody can join it once this is dropped.
struct Joinable<'a, T> {
    lookups: &'a Lookups<T>,
    key: &'a str,
}

impl<T> Drop for Joinable<'_, T> {
    fn drop(&mut self) {
        self.lookups.waiting.lock().remove(self.key);
    }
}

impl<T: Clone> Lookups<T> {
    /// Does `work` for `key`, or has the answer of one that begins after this was called. A failure is only
    /// for who ran it; those who had joined try again.
    pub async fn ask<E>(
        &self,
        key: &str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        loop {
            let (tell, mut told) = match self.waiting.lock().entry(key.to_owned()) {
                Entry::Occupied(entry) => (None, entry.get().clone()),
                Entry::Vacant(entry) => {
                    let (tell, told) = watch::channel(None);
                    entry.insert(told.clone());
                    (Some(tell), told)
                }
            };
            let Some(tell) = tell else {
                let answer = told.wait_for(Option::is_some).await;
                if let Ok(Some(answer)) = answer.map(|answer| answer.clone()) {
                    return Ok(answer);
                }
                continue;
            };
            let joinable = Joinable { lookups: self, key };
            let _turn = self.turn.lock().await;
            drop(joinable);
            let answer = work.await;
            if let Ok(answer) = &answer {
                tell.send_replace(Some(answer.clone()));
            }
            return answer;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::join_all;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Notify;

    #[tokio::test]
    async fn those_who_wait_share_the_next_answer_and_never_an_older_one() {
        let (lookups, calls, go) = (Lookups::default(), AtomicUsize::new(0), Notify::new());
        let work = async || {
            let number = calls.fetch_add(1, Ordering::Relaxed);
            go.notified().await;
            Ok::<_, ()>(number)
        };
        let first = lookups.ask("app", work());
        let others = async {
            // The first runs by now.
            tokio::task::yield_now().await;
            join_all((0..9).map(|_| lookups.ask("app", work()))).await
        };
        let ended = async {
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
            go.notify_one();
            tokio::task::yield_now().await;
            go.notify_one();
        };
        let (first, others, ()) = tokio::join!(first, others, ended);
        assert_eq!(first, Ok(0));
        assert_eq!(others, vec![Ok(1); 9]);
        assert!(lookups.waiting.lock().is_empty());
    }

    #[tokio::test]
    async fn a_failure_is_for_who_ran_it() {
        let (lookups, calls) = (Lookups::default(), AtomicUsize::new(0));
        let work = async || {
            tokio::task::yield_now().await;
            match calls.fetch_add(1, Ordering::Relaxed) {
                0 => Err("broken"),
                number => Ok(number),
            }
        };
        let hold = lookups.turn.lock().await;
        let asks = join_all((0..3).map(|_| lookups.ask("app", work())));
        let release = async move {
            tokio::task::yield_now().await;
            drop(hold);
        };
        let (answers, ()) = tokio::join!(asks, release);
        assert_eq!(answers[0], Err("broken"));
        assert!(answers[1..].iter().all(Result::is_ok), "{answers:?}");
    }

    #[tokio::test]
    async fn one_that_is_given_up_holds_up_nobody() {
        let lookups = Lookups::default();
        let work = async || Ok::<_, ()>(7);
        let hold = lookups.turn.lock().await;
        {
            let mut given_up = Box::pin(lookups.ask("app", work()));
            assert!(futures_util::poll!(&mut given_up).is_pending());
            assert_eq!(lookups.waiting.lock().len(), 1);
        }
        assert!(lookups.waiting.lock().is_empty());
        drop(hold);
        assert_eq!(lookups.ask("app", work()).await, Ok(7));
    }
}
