//! Client tokens: the same call again is the same resource.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;

use super::error;
use crate::message::{Answer, Form};

/// What was asked for with each token, and what it became.
#[derive(Debug, Default)]
pub(super) struct Tokens(Mutex<HashMap<(String, String), Slot>>);

type Slot = Arc<tokio::sync::Mutex<Use>>;

#[derive(Debug, Default)]
struct Use {
    asked: Option<Form>,
    answer: Option<Answer>,
}

impl Tokens {
    /// Lets `work` be done once for a token; whoever asks again gets the first answer.
    ///
    /// A call that failed for lack of room keeps its token for its parameters: the service compares them with the first
    /// ones also then. One that was refused as wrong leaves the token free.
    pub(super) async fn once(
        &self,
        action: &str,
        token: &str,
        form: &Form,
        work: impl Future<Output = Result<Answer>>,
    ) -> Result<Answer> {
        let slot = {
            let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(tokens.entry((action.to_owned(), token.to_owned())).or_default())
        };
        // Two calls with one token at a time: the second one waits for what becomes of the first.
        let mut slot = slot.lock().await;
        let mut asked = form.clone().sorted();
        asked.remove(|name| ["ClientToken", "Version"].contains(&name) || name.starts_with("X-Amz-"));
        if slot.asked.as_ref().is_some_and(|first| *first != asked) {
            let message = format!(
                "Arguments on this idempotent request are inconsistent with arguments used in previous request(s). \
                 ({token})"
            );
            return Ok(error(400, "IdempotentParameterMismatch", &message));
        }
        if let Some(answer) = &slot.answer {
            return Ok(answer.clone());
        }
        let answer = work.await?;
        if answer.is_success() {
            slot.asked = Some(asked);
            slot.answer = Some(answer.clone());
        } else if answer.status >= 500 {
            slot.asked = Some(asked);
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn form(value: &str) -> Form {
        Form(vec![("ClientToken".to_owned(), "t".to_owned()), ("ImageId".to_owned(), value.to_owned())])
    }

    #[tokio::test]
    async fn racing_calls_with_one_token_are_one() {
        let tokens = Tokens::default();
        let made = AtomicU32::new(0);
        let work = || async {
            tokio::task::yield_now().await;
            Ok(Answer::new(200, made.fetch_add(1, Ordering::SeqCst).to_string()))
        };
        let call = || async { tokens.once("Run", "t", &form("a"), work()).await };
        let (a, b, c) = tokio::join!(call(), call(), call());
        for answer in [a, b, c] {
            assert_eq!(answer.unwrap().text().unwrap(), "0");
        }
        let other = tokens.once("Run", "t", &form("b"), work()).await.unwrap();
        assert!(other.text().unwrap().contains("IdempotentParameterMismatch"));
        let elsewhere = tokens.once("Create", "t", &form("b"), work()).await.unwrap();
        assert_eq!(elsewhere.text().unwrap(), "1");
    }

    #[tokio::test]
    async fn a_refused_call_leaves_its_token_free_and_a_shortage_does_not() {
        for (status, free) in [(400, true), (500, false)] {
            let tokens = Tokens::default();
            let answer = async { Ok(Answer::new(status, "no")) };
            tokens.once("Run", "t", &form("a"), answer).await.unwrap();
            let again =
                tokens.once("Run", "t", &form("b"), async { Ok(Answer::new(200, "")) }).await.unwrap();
            assert_eq!(again.status == 200, free, "{status}");
            // The same call is tried again.
            let same = tokens.once("Run", "u", &form("a"), async { Ok(Answer::new(200, "")) }).await.unwrap();
            assert_eq!(same.status, 200);
        }
    }
}
