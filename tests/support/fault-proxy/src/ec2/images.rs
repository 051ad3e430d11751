//! Registered images: the emulator keeps no more of them than their name.

use anyhow::Result;
use hyper::header;

use super::launch::tags_for;
use super::{Ec2, xml};
use crate::message::{Answer, Form, Request};
use crate::upstream::Upstream;

/// What describing says of an image, in the order in which it was registered.
#[derive(Clone, Debug, Default)]
pub(super) struct Image {
    fields: Vec<(&'static str, String)>,
    /// The list of block devices, as XML.
    devices: String,
}

/// Fields of RegisterImage, with what describing calls them, and what it says where they are not given.
const FIELDS: &[(&str, &str, Option<&str>)] = &[
    ("Architecture", "architecture", Some("i386")),
    ("BootMode", "bootMode", None),
    ("EnaSupport", "enaSupport", Some("false")),
    ("ImdsSupport", "imdsSupport", None),
    ("RootDeviceName", "rootDeviceName", None),
    ("SriovNetSupport", "sriovNetSupport", None),
    ("TpmSupport", "tpmSupport", None),
    ("VirtualizationType", "virtualizationType", Some("paravirtual")),
];

impl Ec2 {
    /// Begins a snapshot that is written block by block (EBS direct APIs). The emulator makes a disk for it, which the
    /// service does not have.
    pub(super) async fn start_snapshot(&self, request: &Request, upstream: &Upstream) -> Result<Answer> {
        let answer = self.send(upstream, request).await?;
        let said: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let (true, Some(id)) = (answer.is_success(), said["SnapshotId"].as_str()) else { return Ok(answer) };
        // The emulator tells its services apart by what the call is signed for.
        let mut like = Request { path: "/".to_owned(), ..request.clone() };
        if let Some(signed) = like.headers.get(header::AUTHORIZATION).and_then(|signed| signed.to_str().ok())
        {
            let signed = signed.replace("/ebs/", "/ec2/").parse()?;
            like.headers.insert(header::AUTHORIZATION, signed);
        }
        let fields = [("SnapshotId.1".to_owned(), id.to_owned())];
        let described = self.ask(upstream, &like, "DescribeSnapshots", &fields).await?;
        if described.is_success() {
            for disk in xml::all(described.text()?, "volumeId")? {
                self.ask(upstream, &like, "DeleteVolume", &[("VolumeId".to_owned(), disk)]).await?;
            }
        }
        Ok(answer)
    }

    /// Registers an image, with its tags.
    pub(super) async fn register_image(
        &self,
        request: &Request,
        form: &Form,
        upstream: &Upstream,
    ) -> Result<Answer> {
        let answer = self.send(upstream, request).await?;
        if !answer.is_success() {
            return Ok(answer);
        }
        let Some(id) = xml::all(answer.text()?, "imageId")?.into_iter().next() else { return Ok(answer) };
        let tags = tags_for(form, "image");
        if !tags.is_empty() {
            let mut fields = vec![("ResourceId.1".to_owned(), id.clone())];
            for (index, (key, value)) in tags.into_iter().enumerate() {
                fields.push((format!("Tag.{}.Key", index + 1), key));
                fields.push((format!("Tag.{}.Value", index + 1), value));
            }
            self.ask(upstream, request, "CreateTags", &fields).await?;
        }
        self.world().images.insert(id, Image::from_request(form));
        Ok(answer)
    }

    /// Describes images as they were registered.
    pub(super) async fn describe_images(&self, request: &Request, upstream: &Upstream) -> Result<Answer> {
        let answer = self.send(upstream, request).await?;
        let images = self.world().images.clone();
        if !answer.is_success() || images.is_empty() {
            return Ok(answer);
        }
        let text = answer.text()?.to_owned();
        let document = xml::parse(&text)?;
        let mut edits = xml::Edits::default();
        for item in xml::items(document.root_element(), "imagesSet") {
            let Some(image) = xml::text(item, &["imageId"]).and_then(|id| images.get(id)) else { continue };
            for (name, value) in &image.fields {
                edits.set(item, name, value);
            }
            edits.set(item, "rootDeviceType", "ebs");
            match xml::child(item, "blockDeviceMapping") {
                Some(node) => edits.replace(node, image.devices.clone()),
                None => edits.append(item, &image.devices),
            }
        }
        Ok(answer.with_body(edits.apply(&text)))
    }
}

impl Image {
    fn from_request(form: &Form) -> Self {
        let field = |(asked, said, default): &(&str, &'static str, Option<&str>)| {
            let value = form.get(asked).or(*default)?;
            Some((*said, value.to_owned()))
        };
        let devices: String =
            form.numbers("BlockDeviceMapping").into_iter().map(|n| device(form, n)).collect();
        Self {
            fields: FIELDS.iter().filter_map(field).collect(),
            devices: format!("<blockDeviceMapping>{devices}</blockDeviceMapping>"),
        }
    }
}

fn device(form: &Form, number: u32) -> String {
    let field = |name: &str| form.get(&format!("BlockDeviceMapping.{number}.{name}"));
    let element = |name: &str, value: Option<&str>| {
        value.map(|value| format!("<{name}>{}</{name}>", xml::escape(value))).unwrap_or_default()
    };
    let name = element("deviceName", field("DeviceName"));
    if let Some(other) = field("VirtualName") {
        return format!("<item>{name}{}</item>", element("virtualName", Some(other)));
    }
    let ebs = [
        element("snapshotId", field("Ebs.SnapshotId")),
        element("volumeSize", field("Ebs.VolumeSize")),
        element("volumeType", Some(field("Ebs.VolumeType").unwrap_or("gp2"))),
        element("deleteOnTermination", Some(field("Ebs.DeleteOnTermination").unwrap_or("true"))),
        element("encrypted", Some(field("Ebs.Encrypted").unwrap_or("false"))),
    ];
    format!("<item>{name}<ebs>{}</ebs></item>", ebs.concat())
}
