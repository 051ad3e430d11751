//! The image: there, of the right architecture, and booting as the machines need it.

use cloud_providers::{Finding, OpContext, Result, VerifyReport};

use super::judge;
use crate::{
    AwsProvider,
    client::{Image, LaunchTemplate, TypeInfo},
    known::Known,
};

const CHECK: &str = "image";

impl AwsProvider {
    pub(super) async fn verify_image(
        &self,
        ctx: &OpContext,
        known: &Known,
        template: Option<&LaunchTemplate>,
        default_type: Option<&TypeInfo>,
        report: &mut VerifyReport,
    ) -> Result<()> {
        let option = "PODVM_AMI_ID";
        let id = template.and_then(|t| t.image.clone()).or_else(|| self.config.image.clone());
        let Some(id) = id else {
            let why = "neither an option nor the launch template names it, as far as that can be read";
            report.push(Finding::not_checked(CHECK, why));
            return Ok(());
        };
        if id.starts_with("resolve:") {
            report.push(Finding::not_checked(CHECK, format!("{id} is resolved by EC2 at each launch")));
            return Ok(());
        }
        let image = match judge(CHECK, known.image(ctx, &self.calls, &id).await)? {
            Ok(image) => image,
            Err(finding) => {
                report.push(finding.with_option(option));
                return Ok(());
            }
        };
        let problems = problems(&image, default_type, self.wants_confidential(template));
        if problems.is_empty() {
            let boot = image.boot_mode.as_deref().unwrap_or("the type's default boot mode");
            let architecture = image.architecture.as_deref().unwrap_or("an unknown architecture");
            report.push(Finding::ok(CHECK, format!("{id}, {architecture}, {boot}")));
        }
        for (problem, remedy) in problems {
            let finding = Finding::failed(CHECK, format!("{id}: {problem}")).with_option(option);
            report.push(if remedy.is_empty() { finding } else { finding.with_remedy(remedy) });
        }
        Ok(())
    }
}

/// Returns what is wrong with an image, each with a remedy.
fn problems(
    image: &Image,
    default_type: Option<&TypeInfo>,
    confidential: bool,
) -> Vec<(String, &'static str)> {
    let mut problems = Vec::new();
    if image.state != "available" {
        problems.push((format!("it is {}, not available", image.state), "wait, or register it again"));
    }
    if image.ena == Some(false) {
        problems.push(("it has no enhanced networking".into(), "register it with --ena-support"));
    }
    if image.root_device.is_none() {
        problems.push(("it does not tell its root device".into(), ""));
    }
    let uefi = image.boot_mode.as_deref().is_some_and(|mode| mode.starts_with("uefi"));
    // Arm machines boot by UEFI whatever the image says.
    let arm = image.architecture.as_deref() == Some("arm64");
    if confidential && !uefi && !arm {
        let mode = image.boot_mode.as_deref().unwrap_or("no boot mode, which is legacy-bios on x86");
        problems.push((
            format!("AMD SEV-SNP needs UEFI, and the image says {mode}"),
            "register it with --boot-mode uefi, or set DISABLECVM for machines that are not confidential",
        ));
    }
    if let Some(info) = default_type {
        if let Some(architecture) = &image.architecture
            && !info.architectures.is_empty()
            && !info.architectures.contains(architecture)
        {
            problems.push((
                format!("it is for {architecture}, and {} is {}", info.name, info.architectures.join(", ")),
                "set PODVM_INSTANCE_TYPE to a type of this architecture",
            ));
        }
        let mode = image.boot_mode.as_deref().filter(|mode| *mode != "uefi-preferred");
        if let Some(mode) = mode
            && !info.boot_modes.is_empty()
            && !info.boot_modes.iter().any(|m| m == mode)
        {
            problems.push((format!("it boots by {mode}, and {} cannot", info.name), ""));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Image {
        Image {
            id: "ami-1".into(),
            state: "available".into(),
            architecture: Some("x86_64".into()),
            boot_mode: Some("uefi".into()),
            root_device: Some("/dev/xvda".into()),
            mappings: Vec::new(),
            ena: Some(true),
        }
    }

    #[test]
    fn a_confidential_machine_needs_an_image_for_uefi() {
        let check = |mode: Option<&str>, confidential| {
            let image = Image { boot_mode: mode.map(str::to_owned), ..image() };
            problems(&image, None, confidential).len()
        };
        assert_eq!(check(Some("uefi"), true) + check(Some("uefi-preferred"), true), 0);
        assert_eq!(check(Some("legacy-bios"), true) + check(None, true), 2);
        assert_eq!(check(Some("legacy-bios"), false) + check(None, false), 0);
    }

    #[test]
    fn image_and_type_fit_in_architecture_and_boot_mode() {
        let arm = TypeInfo {
            name: "m6g.large".into(),
            architectures: vec!["arm64".into()],
            boot_modes: vec!["uefi".into()],
            ..TypeInfo::default()
        };
        assert!(problems(&image(), Some(&arm), false)[0].0.contains("arm64"));
        let bios =
            Image { architecture: Some("arm64".into()), boot_mode: Some("legacy-bios".into()), ..image() };
        assert!(problems(&bios, Some(&arm), false)[0].0.contains("boots by legacy-bios"));
    }
}
