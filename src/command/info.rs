//! `loopbox info`: what is in an image.

use std::ffi::OsString;

use format::partition::{Partition, Role, Scheme, Table};
use format::probe::{Container, Format};
use format::spec::Spec;
use fs::identify::Identity;
use serde::Serialize;

use super::{Result, Status};
use crate::describe::{Content, Machine, PartitionContent, describe_spec};
use crate::print::{self, Style, escaped, styled};

/// Says what is in an image: format, partitions, file systems, and what can be done with them here.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image: a file, with options such as `,partition=2` or `,offset=1MiB`.
    #[arg(value_name = "IMAGE")]
    image: OsString,

    /// Print JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    key: crate::passphrase::KeyFile,
}

#[derive(Serialize)]
struct Report {
    image: String,
    #[serde(flatten)]
    content: Content,
}

/// Prints a tree, or JSON.
pub fn run(args: &Args) -> Result {
    args.key.remember();
    let spec = Spec::parse(&args.image)?;
    let content = describe_spec(&spec, &Machine::here())?;
    let image = spec.to_string();
    if args.json {
        print::json(&Report { image, content })?;
    } else {
        let mut text = String::new();
        let name = styled(Style::Name, &escaped(image.as_bytes()));
        let mut root = node(&content);
        root.text = format!("{name}: {}", root.text);
        root.write("", "", &mut text);
        print::bytes(text.as_bytes())?;
    }
    Ok(Status::Done)
}

/// A line and what stands below it.
struct Node {
    text: String,
    below: Vec<Node>,
}

impl Node {
    fn leaf(text: String) -> Self {
        Self { text, below: Vec::new() }
    }

    fn write(&self, first: &str, rest: &str, out: &mut String) {
        out.push_str(&format!("{first}{}\n", self.text));
        for (at, node) in self.below.iter().enumerate() {
            let last = at + 1 == self.below.len();
            let (first, more) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            node.write(&format!("{rest}{first}"), &format!("{rest}{more}"), out);
        }
    }
}

fn node(content: &Content) -> Node {
    let mut words = vec![container(&content.container)];
    if content.image.is_none() {
        words.push(print::size(content.size_bytes));
    }
    if content.container.format == Format::Raw && content.filesystem.is_none() && content.table.is_none() {
        words.push("nothing known in it".to_owned());
    }
    let mut below = Vec::new();
    if let Some(details) = &content.image {
        if let Some(format) = &details.backing_format {
            below.push(Node::leaf(format!("backing format {}", escaped(format.as_bytes()))));
        }
        if !details.features.is_empty() {
            below.push(Node::leaf(details.features.join(", ")));
        }
        for snapshot in &details.snapshots {
            let name = styled(Style::Bold, &escaped(snapshot.name.as_bytes()));
            let mut text = format!("snapshot {} {name}", escaped(snapshot.id.as_bytes()));
            if let Some(bytes) = snapshot.disk_bytes {
                text += &format!(", a disk of {}", print::size(bytes));
            }
            if snapshot.state_bytes > 0 {
                text += &format!(", with {} of a machine's state", print::size(snapshot.state_bytes));
            }
            below.push(Node::leaf(text));
        }
    }
    for slot in content.key_slots.iter().flatten() {
        let number = styled(Style::Bold, &format!("slot {}", slot.slot));
        below.push(Node::leaf(format!("key {number}: {}; {} of {} bits", slot.cost(), slot.cipher, slot.key_bits)));
    }
    below.extend(content.filesystem.as_ref().map(|identity| Node::leaf(file_system(identity))));
    below.extend(content.table.as_ref().map(|table| table_node(table, &content.partitions)));
    for ability in &content.abilities {
        let (style, mark) = if ability.works { (Style::Good, "✓") } else { (Style::Dim, "✗") };
        let text = format!("{} {}: {}", styled(style, mark), ability.command, styled(Style::Dim, &ability.by));
        below.push(Node::leaf(text));
    }
    Node { text: words.join(", "), below }
}

fn container(container: &Container) -> String {
    let mut text = container.format.name().to_owned();
    if let Some(version) = container.version {
        text += &format!(" {version}");
    }
    if let Some(label) = container.label.as_ref().filter(|label| !label.is_empty()) {
        text += &format!(" \"{}\"", escaped(label.as_bytes()));
    }
    for word in [&container.variant, &container.uuid].into_iter().flatten() {
        text += &format!(" {}", escaped(word.as_bytes()));
    }
    if let Some(bytes) = container.virtual_bytes.filter(|_| container.format != Format::Raw) {
        text += &format!(", a disk of {}", print::size(bytes));
    }
    if let Some(backing) = &container.backing_file {
        text += &format!(", on top of \"{}\"", escaped(backing.as_bytes()));
    }
    text
}

fn file_system(identity: &Identity) -> String {
    let mut text = styled(Style::Bold, identity.name);
    if let Some(version) = &identity.version {
        text += &format!(" {version}");
    }
    if !identity.label.is_empty() {
        text += &format!(" \"{}\"", escaped(identity.label.as_bytes()));
    }
    if !identity.uuid.is_empty() {
        text += &format!(" {}", escaped(identity.uuid.as_bytes()));
    }
    match (identity.size_bytes, identity.used_bytes) {
        (Some(size), Some(used)) => text += &format!(", {} of {} used", print::size(used), print::size(size)),
        (Some(size), None) => text += &format!(", {}", print::size(size)),
        _ => {}
    }
    for flag in &identity.flags {
        // The words of the JSON.
        let word = serde_json::to_value(flag).ok().and_then(|word| word.as_str().map(str::to_owned));
        text += &format!(", {}", word.unwrap_or_default());
    }
    text
}

fn table_node(table: &Table, contents: &[PartitionContent]) -> Node {
    let scheme = match table.scheme {
        Scheme::Mbr => "MBR",
        Scheme::Gpt => "GPT",
    };
    let mut text = styled(Style::Bold, scheme);
    text += &table.id.as_ref().map(|id| format!(" {id}")).unwrap_or_default();
    let count = table.partitions.len();
    text += &format!(", {count} partition{}", if count == 1 { "" } else { "s" });
    text += &format!(", sectors of {} B", table.sector_bytes);
    let mut below: Vec<Node> = table.partitions.iter().map(|partition| partition_node(partition, contents)).collect();
    for problem in &table.problems {
        below.push(Node::leaf(format!("{} {problem}", styled(Style::Warning, "!"))));
    }
    if let Some(other) = &table.shadowed {
        let mut other = table_node(other, &[]);
        other.text = format!("also there: {}", other.text);
        below.push(other);
    }
    Node { text, below }
}

fn partition_node(partition: &Partition, contents: &[PartitionContent]) -> Node {
    let mut text = styled(Style::Bold, &partition.number.to_string());
    text += &format!("  {}", partition.type_name.unwrap_or(&partition.type_id));
    if !partition.name.is_empty() {
        text += &format!(" \"{}\"", escaped(partition.name.as_bytes()));
    }
    text += &format!(", {} at byte {}", print::size(partition.size_bytes), partition.start_byte);
    if partition.bootable {
        text += ", bootable";
    }
    if partition.role == Role::Logical {
        text += ", logical";
    }
    let Some(found) = contents.iter().find(|content| content.number == partition.number) else {
        return Node::leaf(text);
    };
    let below = match (&found.content, &found.error) {
        (Some(content), _) => {
            let inside = node(content);
            match content.container.format {
                Format::Raw => inside.below,
                _ => vec![inside],
            }
        }
        (None, Some(error)) => vec![Node::leaf(format!("{} {}", styled(Style::Bad, "!"), escaped(error.as_bytes())))],
        (None, None) => Vec::new(),
    };
    Node { text, below }
}
