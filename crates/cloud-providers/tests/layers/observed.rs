//! What is told to observers; what is told to the log is in a program of its own, see `spans.rs`.

use std::{sync::Mutex, time::Duration};

use cloud_providers::{
    ErrorKind,
    layers::{CallOutcome, Observer, Operation},
};

/// Keeps everything that it is told.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) started: Mutex<Vec<Operation>>,
    pub(crate) finished: Mutex<Vec<(Operation, CallOutcome, Duration)>>,
    pub(crate) retried: Mutex<Vec<(Operation, ErrorKind, Duration)>>,
    pub(crate) waited: Mutex<Vec<(Operation, Duration)>>,
}

impl Observer for Counts {
    fn started(&self, operation: Operation) {
        self.started.lock().unwrap().push(operation);
    }

    fn finished(&self, operation: Operation, outcome: CallOutcome, elapsed: Duration) {
        self.finished.lock().unwrap().push((operation, outcome, elapsed));
    }

    fn retried(&self, operation: Operation, kind: &ErrorKind, delay: Duration) {
        self.retried.lock().unwrap().push((operation, kind.clone(), delay));
    }

    fn waited(&self, operation: Operation, delay: Duration) {
        self.waited.lock().unwrap().push((operation, delay));
    }
}
