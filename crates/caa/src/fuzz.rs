//! Hostile annotations, and journals that something damaged.

use std::collections::HashMap;

use fuzz_support::{Seen, Target, recorded};
use peerpod_proto::messages::hypervisor::CreateVmRequest;
use prost::Message as _;

use crate::annotations::{PodRequest, check_sandbox_id, keys};

/// What a refusal may add to a status: the shim prints it in an event of the pod.
const MESSAGE: usize = 4096;

#[test]
fn annotations() {
    let words = [
        keys::SANDBOX_NAME,
        keys::SANDBOX_NAMESPACE,
        keys::VCPUS,
        keys::MEMORY,
        keys::GPUS,
        keys::MACHINE_TYPE,
        keys::INIT_DATA,
        "k8s_web_default_uid_0",
        "1.5",
        "65536",
        "1e3",
        "inf",
    ];
    Target::new("annotations").seeds(recorded("CreateVM")).words(&words).proto().run(|input| {
        let Ok(request) = CreateVmRequest::decode(input) else { return Seen::refused("no message") };
        if let Err(status) = check_sandbox_id(&request.id) {
            assert!(
                status.message.contains("sandbox id") && status.message.len() < MESSAGE,
                "{}",
                status.message
            );
            return Seen::refused(&status.message);
        }
        assert!(std::path::Path::new("/pods").join(&request.id).parent() == Some("/pods".as_ref()));
        match PodRequest::parse(&request.annotations) {
            Ok(pod) => {
                assert!(!pod.name.is_empty() && !pod.namespace.is_empty());
                assert!(pod.spec.vcpus <= 65_536 && pod.spec.gpus <= 1024);
                let get = |key: &str| request.annotations.get(key).map(String::as_str).unwrap_or_default();
                let asked = get(keys::VCPUS).parse::<f64>().unwrap_or(0.0);
                assert!(f64::from(pod.spec.vcpus) >= asked && f64::from(pod.spec.vcpus) < asked + 1.0);
                Seen::accepted((
                    pod.spec.vcpus.min(3),
                    pod.spec.gpus.min(2),
                    pod.init_data.is_some(),
                    pod.uid.is_some(),
                ))
            }
            Err(status) => {
                let text = &status.message;
                assert!(text.len() < MESSAGE, "a message of {} bytes", text.len());
                // Whatever is wrong alone is named among all problems.
                for (key, value) in &request.annotations {
                    let good = [(keys::SANDBOX_NAME, "web"), (keys::SANDBOX_NAMESPACE, "default")];
                    let mut alone: HashMap<String, String> = good.map(|(k, v)| (k.into(), v.into())).into();
                    alone.insert(key.clone(), value.clone());
                    let wrong = PodRequest::parse(&alone).is_err();
                    assert!(!wrong || text.contains(key.as_str()), "{text} does not name {key}");
                }
                Seen::refused(text)
            }
        }
    });
}
