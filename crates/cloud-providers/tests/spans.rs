//! What is told to the log.
//!
//! The only test of its program. Whether anybody listens to a place in the code is found out once, when it is first passed,
//! and a log that begins at that very moment on another thread is overlooked for ever. With other tests beside it, which
//! pass the same places without a log, this one missed its span now and then.

#[expect(dead_code, reason = "the other tests of the layers use the rest")]
#[path = "layers/script.rs"]
mod script;

use std::{
    io::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use cloud_providers::{
    Error, ErrorKind, OpContext,
    layers::{Layer, Operation, Stack},
};
use tracing_subscriber::fmt::format::FmtSpan;

use crate::script::{Answer, Script, call, run};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn each_call_is_one_span_with_its_subject_and_without_user_data() {
    for operation in Operation::ALL {
        for result in [Ok(()), Err(Error::new(ErrorKind::Quota, "no more"))] {
            let log = Log::default();
            let writer = log.clone();
            let subscriber = tracing_subscriber::fmt()
                .with_max_level(tracing::Level::TRACE)
                .with_span_events(FmtSpan::NEW | FmtSpan::CLOSE)
                .with_ansi(false)
                .with_writer(move || writer.clone())
                .finish();
            let failed = result.is_err();
            let inner = Script::new(vec![Answer { after: Duration::from_secs(3), result }]);
            let provider = Stack::new("cloud").with(Layer::Tracing).wrap(Arc::new(inner)).unwrap();
            tracing::subscriber::with_default(subscriber, || {
                run(async { drop(call(&*provider, operation, &OpContext::new()).await) });
            });
            let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
            let count = |part: &str| text.matches(part).count();
            assert_eq!((count(": new"), count(": close")), (1, 1), "{text}");
            let subject = match operation {
                Operation::Create => "unit=\"sandbox-1\"",
                Operation::Delete | Operation::Console => "instance_id=\"i-1\"",
                Operation::List => "scope=\"cluster:c\"",
                Operation::Release => "token=\"cluster:c/sandbox-1/1\"",
                _ => "",
            };
            let end = if failed { "the provider failed" } else { "the provider answered" };
            for part in ["provider=cloud", &format!("operation={operation}"), subject, end, "elapsed=3s"] {
                assert!(text.contains(part), "{part} is missing in {text}");
            }
            assert!(!text.contains("canary") && (!failed || text.contains("no more")), "{text}");
        }
    }
}
