use proptest::prelude::*;

use super::*;

const COUNT: usize = FEATURES.len();

/// A tree as a test knows it.
#[derive(Clone, Debug)]
enum Tree {
    Leaf(f32),
    Branch(u8, f32, Box<[Tree; 2]>),
}

impl Tree {
    fn value(&self, features: &[f32; COUNT]) -> f32 {
        match self {
            Tree::Leaf(value) => *value,
            Tree::Branch(feature, threshold, next) => {
                let is_first = features[usize::from(*feature)] <= *threshold;
                next[1 - usize::from(is_first)].value(features)
            }
        }
    }

    /// Appends the nodes, those of the first way before those of the second.
    fn write(&self, nodes: &mut Vec<[u8; NODE_BYTES]>) {
        let place = nodes.len();
        nodes.push([0; NODE_BYTES]);
        let (feature, value, next) = match self {
            Tree::Leaf(value) => (LEAF, *value, [0; 2]),
            Tree::Branch(feature, threshold, next) => {
                let next = next.each_ref().map(|tree| {
                    let start = nodes.len() as u16;
                    tree.write(nodes);
                    start
                });
                (*feature, *threshold, next)
            }
        };
        nodes[place][0] = feature;
        nodes[place][1..5].copy_from_slice(&value.to_le_bytes());
        nodes[place][5..7].copy_from_slice(&next[0].to_le_bytes());
        nodes[place][7..].copy_from_slice(&next[1].to_le_bytes());
    }
}

/// A sum as a test knows it.
#[derive(Clone, Debug)]
struct Terms {
    /// Whether it starts from the action before.
    chained: bool,
    base: f32,
    slope: f32,
    feature: u8,
    trees: Vec<Tree>,
}

fn write_names<'a>(names: impl ExactSizeIterator<Item = &'a str>, out: &mut Vec<u8>) {
    out.push(names.len() as u8);
    for name in names {
        out.push(name.len() as u8);
        out.extend(name.as_bytes());
    }
}

fn seal(mut content: Vec<u8>) -> Vec<u8> {
    let digest = Digest::of(&content);
    content.extend(digest.0);
    content
}

/// Everything before the sums.
fn head() -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.push(VERSION);
    write_names(FEATURES.into_iter(), &mut out);
    let actions = Action::ALL.map(|action| action.to_string());
    write_names(actions.iter().map(String::as_str), &mut out);
    for number in 0..Action::ALL.len() {
        out.extend((number as f32).to_le_bytes());
        out.extend((number as f32 / 2.0).to_le_bytes());
    }
    out
}

/// The model of which every sum is one of `sums`, in turn.
fn model(sums: &[Terms]) -> Vec<u8> {
    let mut out = head();
    for (number, sum) in sums.iter().cycle().take(3 * Action::ALL.len()).enumerate() {
        out.push(if sum.chained && number >= 3 { (number / 3 - 1) as u8 } else { NO_ACTION });
        out.extend(sum.base.to_le_bytes());
        out.extend(sum.slope.to_le_bytes());
        out.extend([sum.feature, MAX_DEPTH as u8]);
        out.extend((sum.trees.len() as u16).to_le_bytes());
        for tree in &sum.trees {
            let mut nodes = Vec::new();
            tree.write(&mut nodes);
            out.extend((nodes.len() as u16).to_le_bytes());
            out.extend(nodes.concat());
        }
    }
    seal(out)
}

fn trees() -> impl Strategy<Value = Tree> {
    // Few values, so that features meet thresholds.
    let leaf = (-40..40_i8).prop_map(|value| Tree::Leaf(f32::from(value) / 64.0));
    leaf.prop_recursive(MAX_DEPTH as u32, 100, 2, |inner| {
        (0..COUNT as u8, -3..4_i8, inner.clone(), inner).prop_map(|(feature, threshold, first, second)| {
            Tree::Branch(feature, threshold.into(), Box::new([first, second]))
        })
    })
}

fn sums() -> impl Strategy<Value = Vec<Terms>> {
    let trees = prop::collection::vec(trees(), 0..6);
    let sum = (any::<bool>(), -3..3_i8, -2..3_i8, 0..COUNT as u8, trees).prop_map(
        |(chained, base, slope, feature, trees)| {
            let (base, slope) = (base.into(), slope.into());
            Terms { chained, base, slope, feature, trees }
        },
    );
    prop::collection::vec(sum, 1..5)
}

fn values() -> impl Strategy<Value = [f32; COUNT]> {
    let value = prop_oneof![
        (-4..5_i8).prop_map(f32::from),
        -3.0..9.0_f32,
        Just(f32::NAN),
        Just(f32::INFINITY),
        Just(f32::NEG_INFINITY)
    ];
    prop::collection::vec(value, COUNT).prop_map(|values| values.try_into().unwrap())
}

fn small() -> Vec<u8> {
    let tree = Tree::Branch(3, 0.5, Box::new([Tree::Leaf(-1.0), Tree::Leaf(1.0)]));
    model(&[Terms { chained: false, base: 0.25, slope: 1.0, feature: 2, trees: vec![tree] }])
}

proptest! {
    #[test]
    fn model_predicts_what_walking_its_nodes_gives(sums in sums(), values in values()) {
        let model = Model::read(&model(&sums)).unwrap();
        let predictions = model.predict(&Features::from_values(values));
        let told = predictions
            .iter()
            .flat_map(|told| [told.ratio, told.compress_ns_per_byte, told.decompress_ns_per_byte]);
        let mut before = [0.0; 3];
        for (number, (told, sum)) in told.zip(sums.iter().cycle()).enumerate() {
            let linear = sum.slope * values[usize::from(sum.feature)].max(1.0 / 256.0).ln();
            let linear = if sum.slope == 0.0 { 0.0 } else { linear };
            let expected = sum.trees.iter().fold(sum.base + linear, |sum, tree| sum + tree.value(&values));
            let start = if sum.chained { before[number % 3] } else { 0.0 };
            before[number % 3] = (expected + start).clamp(-MOST_LOG, MOST_LOG);
            let expected = before[number % 3].exp();
            prop_assert!(told.is_finite());
            prop_assert!((told / expected - 1.0).abs() < 1e-5, "{told} {expected}");
        }
    }

    #[test]
    fn content_of_any_kind_under_a_right_digest_is_read_or_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop_oneof![Just(None), any::<prop::sample::Index>().prop_map(Some)],
        sums in sums(),
        values in values(),
    ) {
        let mut content = model(&sums);
        content.truncate(content.len() - DIGEST_BYTES);
        for (at, byte) in changes {
            // Names are compared whole; what comes behind them is more interesting.
            let start = if byte % 8 == 0 { 0 } else { head().len() - 8 * Action::ALL.len() };
            let at = start + at.index(content.len() - start);
            content[at] = byte;
        }
        if let Some(cut) = cut {
            content.truncate(cut.index(content.len()));
        }
        if let Ok(model) = Model::read(&seal(content)) {
            let predictions = model.predict(&Features::from_values(values));
            prop_assert!(predictions.iter().all(|told| told.ratio.is_finite() && told.ratio > 0.0));
        }
    }
}

#[test]
fn truncation_and_a_flipped_bit_anywhere_are_refused() {
    let bytes = small();
    assert!(Model::read(&bytes).is_ok());
    for length in 0..bytes.len() {
        assert!(Model::read(&bytes[..length]).is_err(), "{length}");
    }
    let mut changed = bytes.clone();
    for bit in 0..8 * bytes.len() {
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(Model::read(&changed).is_err(), "{bit}");
        changed[bit / 8] ^= 1 << (bit % 8);
    }
    assert_eq!(
        Model::read(&vec![0; MAX_MODEL_BYTES + 1]).unwrap_err(),
        ModelError::TooLong { length: MAX_MODEL_BYTES + 1, limit: MAX_MODEL_BYTES }
    );
}

#[test]
fn newer_foreign_and_malformed_models_are_named() {
    let content = || {
        let mut bytes = small();
        bytes.truncate(bytes.len() - DIGEST_BYTES);
        bytes
    };
    let refused = |content: Vec<u8>| Model::read(&seal(content)).unwrap_err().to_string();
    let mut newer = content();
    newer[4] = 2;
    assert_eq!(refused(newer), "model version 2 is not supported, the only known is 1");
    let mut foreign = content();
    foreign[7] = b'L';
    let expected = "feature 0 of the model is \"Log2_bytes\", of this version \"log2_bytes\"";
    assert_eq!(refused(foreign), expected);
    let mut fewer = MAGIC.to_vec();
    fewer.extend([VERSION, 1, 10]);
    fewer.extend(b"log2_bytes");
    assert_eq!(refused(fewer), "feature 1 of the model is \"\", of this version \"width\"");
    let mut longer = content();
    longer.push(0);
    assert_eq!(refused(longer), "1 bytes follow the last part of the model");
    // The first sum and its tree.
    let sum = head().len();
    let with = |at: usize, bytes: &[u8]| {
        let mut content = content();
        content[sum + at..][..bytes.len()].copy_from_slice(bytes);
        refused(content)
    };
    assert_eq!(with(0, &[0]), "the ratio of none starts from action 0, which is not before it");
    assert_eq!(with(1, &f32::NAN.to_le_bytes()), "base is NaN, outside -1000000000..=1000000000");
    assert_eq!(with(10, &[9]), "depth is 9, outside 0..=8");
    let tree = "tree 0 of the ratio of none: node ";
    assert_eq!(with(10, &[0]), format!("{tree}0 leads deeper than was said"));
    assert_eq!(with(20, &[0, 0]), format!("{tree}0 leads back"));
    assert_eq!(with(20, &[9, 0]), format!("{tree}0 leads to none"));
    assert_eq!(with(20, &[2, 0]), format!("{tree}0 leads where another does"));
    assert_eq!(with(15, &[LEAF]), format!("{tree}1 is led to by none"));
    let mut slower = content();
    slower[sum - 80..sum - 76].copy_from_slice(&(-1.0_f32).to_le_bytes());
    assert_eq!(refused(slower), "reference time is -1, outside 0..=1000000");
}
