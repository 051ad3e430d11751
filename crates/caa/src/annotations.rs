//! What a shim says about a pod in CreateVM.

use std::collections::HashMap;

use cloud_providers::InstanceSpec;
use peerpod_proto::Status;

/// Keys of the annotations that a shim sends, all of them always, empty when unset.
pub mod keys {
    /// Name of the pod; cri-o's form `k8s_<pod>_<namespace>_<uid>_<attempt>` is understood.
    pub const SANDBOX_NAME: &str = "io.kubernetes.cri.sandbox-name";
    /// Namespace of the pod.
    pub const SANDBOX_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
    /// UID of the pod; no shim sends it today.
    pub const SANDBOX_UID: &str = "io.kubernetes.cri.sandbox-uid";
    /// The cloud's own instance type.
    pub const MACHINE_TYPE: &str = "io.katacontainers.config.hypervisor.machine_type";
    /// Virtual processors; runtime-rs writes fractions.
    pub const VCPUS: &str = "io.katacontainers.config.hypervisor.default_vcpus";
    /// Memory in MiB.
    pub const MEMORY: &str = "io.katacontainers.config.hypervisor.default_memory";
    /// Number of GPUs.
    pub const GPUS: &str = "io.katacontainers.config.hypervisor.default_gpus";
    /// Model of the GPUs.
    pub const GPU_MODEL: &str = "io.katacontainers.config.hypervisor.default_gpu_model";
    /// Image of the VM.
    pub const IMAGE: &str = "io.katacontainers.config.hypervisor.image";
    /// Init-data: the decoded TOML text, or its encoded form.
    pub const INIT_DATA: &str = "io.katacontainers.config.hypervisor.cc_init_data";
}

/// The annotations, parsed strictly. Zero and `None` mean that the pod does not mind.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodRequest {
    /// Name of the pod.
    pub name: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// UID of the pod, where the shim knows it.
    pub uid: Option<String>,
    /// Machine wanted.
    pub spec: InstanceSpec,
    /// Init-data as it came.
    pub init_data: Option<String>,
}

impl PodRequest {
    /// Reads the annotations and reports all problems together.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` naming every annotation that is missing or does not parse, with its value.
    pub fn parse(annotations: &HashMap<String, String>) -> Result<Self, Status> {
        let get = |key: &str| annotations.get(key).map(String::as_str).filter(|v| !v.is_empty());
        let mut problems = Vec::new();
        let name = get(keys::SANDBOX_NAME).map(pod_name).unwrap_or_default();
        let namespace = get(keys::SANDBOX_NAMESPACE).unwrap_or_default().to_owned();
        if name.is_empty() {
            problems.push(format!("annotation {} is missing or empty", keys::SANDBOX_NAME));
        }
        if namespace.is_empty() {
            problems.push(format!("annotation {} is missing or empty", keys::SANDBOX_NAMESPACE));
        }
        let mut spec = InstanceSpec::default();
        spec.instance_type = get(keys::MACHINE_TYPE).map(str::to_owned);
        spec.image = get(keys::IMAGE).map(str::to_owned);
        spec.gpu_model = get(keys::GPU_MODEL).map(str::to_owned);
        let mut number = |key: &str, form: &str, parse: &dyn Fn(&str) -> Option<u64>| {
            let text = get(key)?;
            let value = parse(text);
            if value.is_none() {
                problems.push(format!("annotation {key} is {}, expected {form}", shown(text)));
            }
            value
        };
        // runtime-rs sends the sum of the workload's limits as a fraction; part of a processor needs a whole one.
        let vcpus = number(keys::VCPUS, "a number of processors", &|text| {
            let n: f64 = text.parse().ok()?;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "the range is checked first"
            )]
            (n.is_finite() && (0.0..=65_536.0).contains(&n)).then(|| n.ceil() as u64)
        });
        let memory = number(keys::MEMORY, "a whole number of MiB", &|text| text.parse().ok());
        let gpus =
            number(keys::GPUS, "a whole number of GPUs", &|text| text.parse().ok().filter(|n| *n <= 1024));
        spec.vcpus = vcpus.and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
        spec.memory_mib = memory.unwrap_or(0);
        spec.gpus = gpus.and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
        if problems.is_empty() {
            let uid = get(keys::SANDBOX_UID).map(str::to_owned);
            let init_data = get(keys::INIT_DATA).map(str::to_owned);
            Ok(Self { name, namespace, uid, spec, init_data })
        } else {
            Err(Status::invalid_argument(problems.join("; ")))
        }
    }
}

/// A value as people see it. Its whole text may be as long as a message, and would not fit into the one that refuses it.
fn shown(text: &str) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{:?}… ({} bytes)", &text[..end], text.len()),
        None => format!("{text:?}"),
    }
}

/// Takes the pod's name out of cri-o's `k8s_<pod>_<namespace>_<uid>_<attempt>`; other texts are the name itself.
fn pod_name(text: &str) -> String {
    match text.split('_').collect::<Vec<_>>()[..] {
        ["k8s", pod, ..] => pod.to_owned(),
        _ => text.to_owned(),
    }
}

/// Checks that an id is safe as part of a path and of names: what shims use is `[A-Za-z0-9_.-]+`.
///
/// # Errors
///
/// `InvalidArgument`.
pub fn check_sandbox_id(id: &str) -> Result<(), Status> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if id.is_empty() {
        return Err(Status::invalid_argument("the sandbox id is empty"));
    }
    if id.len() > 128 || !id.chars().all(fine) || id.starts_with('.') {
        let shown: String = id.chars().take(140).collect();
        return Err(Status::invalid_argument(format!(
            "sandbox id {shown:?} is not usable: up to 128 letters, digits, '-', '_' and '.', not beginning with '.'"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        let base = [(keys::SANDBOX_NAME, "web"), (keys::SANDBOX_NAMESPACE, "default")];
        base.iter().chain(pairs).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn fractional_vcpus_round_up() {
        for (text, vcpus) in [("1", 1), ("1.5", 2), ("0", 0), ("", 0), ("0.1", 1)] {
            assert_eq!(
                PodRequest::parse(&annotations(&[(keys::VCPUS, text)])).unwrap().spec.vcpus,
                vcpus,
                "{text}"
            );
        }
    }

    #[test]
    fn every_bad_annotation_is_named_at_once() {
        let bad = annotations(&[
            (keys::SANDBOX_NAME, ""),
            (keys::VCPUS, "NaN"),
            (keys::MEMORY, "-1"),
            (keys::GPUS, "many"),
        ]);
        let text = PodRequest::parse(&bad).unwrap_err().message;
        for key in [keys::SANDBOX_NAME, keys::VCPUS, keys::MEMORY, keys::GPUS] {
            assert!(text.contains(key), "{text}");
        }
    }

    #[test]
    fn a_value_without_end_is_told_in_part() {
        let bad = annotations(&[(keys::MEMORY, &"ä\0".repeat(100_000)), (keys::VCPUS, &"1".repeat(60))]);
        let text = PodRequest::parse(&bad).unwrap_err().message;
        assert!(text.len() < 1000 && text.contains("300000 bytes"), "{text}");
        assert!(text.contains(&format!("{:?}", "1".repeat(60))), "{text}");
    }

    #[test]
    fn the_form_of_crio_gives_the_pod_name() {
        for (text, name) in [("k8s_web_default_uid_0", "web"), ("web", "web"), ("k8s", "k8s"), ("a_b", "a_b")]
        {
            assert_eq!(PodRequest::parse(&annotations(&[(keys::SANDBOX_NAME, text)])).unwrap().name, name);
        }
    }

    #[test]
    fn ids_that_leave_their_folder_are_refused() {
        for id in ["", "..", "a/b", ".hidden", "a\0b", "ä", &"a".repeat(129)] {
            assert!(check_sandbox_id(id).is_err(), "{id:?}");
        }
        assert!(check_sandbox_id("0123456789abcdef_A.b-c").is_ok());
    }
}
