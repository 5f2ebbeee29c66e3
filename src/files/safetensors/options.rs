//! Which tensors of a file are quantised, and how.

use crate::description::element::ElementType;

/// How [`super::SafetensorsFile::quantize`] quantises.
///
/// ```
/// use ane_matmul::{ElementType, safetensors::QuantizeOptions};
///
/// let mut options = QuantizeOptions::new(ElementType::I4);
/// options.group_size = 64;
/// options.exclude.push("*.layers.0.*".into());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuantizeOptions {
    /// The type of the integers: i8 or i4.
    pub element: ElementType,
    /// The elements along k that share a scale: 128, unless changed.
    pub group_size: u32,
    /// Whether tensors are stored n x k, as PyTorch stores a linear layer's weights: true, unless changed.
    pub transpose_b: bool,
    /// Patterns ([`name_matches`]) of the names of tensors that are copied and not quantised:
    /// [`QuantizeOptions::EXCLUDED`], unless changed.
    pub exclude: Vec<String>,
}

impl QuantizeOptions {
    /// The names of output heads, embeddings and routers of experts, in the spellings of Hugging Face's models and
    /// of GGUF. What is looked up is no factor of a product, and heads and routers lose the most by rounding.
    pub const EXCLUDED: &'static [&'static str] = &[
        "*lm_head*",
        "output.weight",
        "*predictions.decoder*",
        "*classifier*",
        "score.weight",
        "*embed*",
        "*embd*",
        "*wte.weight",
        "*wpe.weight",
        "shared.weight",
        "*.gate.weight",
        "*router*",
        "*shared_expert_gate*",
        "*ffn_gate_inp*",
    ];

    /// Groups of 128 along k, of tensors stored n x k whose names [`QuantizeOptions::EXCLUDED`] does not match.
    #[must_use]
    pub fn new(element: ElementType) -> Self {
        let exclude = Self::EXCLUDED.iter().copied().map(String::from).collect();
        Self { element, group_size: 128, transpose_b: true, exclude }
    }

    /// The first pattern that excludes a tensor.
    pub(super) fn excluded_by(&self, name: &str) -> Option<&str> {
        self.exclude.iter().map(String::as_str).find(|pattern| name_matches(pattern, name))
    }
}

/// Whether a pattern matches the whole of a name: `*` stands for any characters, or none, `?` for one, and all
/// others for themselves.
#[must_use]
pub fn name_matches(pattern: &str, name: &str) -> bool {
    let [pattern, name]: [Vec<char>; 2] = [pattern, name].map(|text| text.chars().collect());
    let (mut at, mut seen) = (0, 0);
    // Behind the last star, and the end of what it stands for so far: it may stand for more, and those before
    // it need not.
    let mut star = None;
    while seen < name.len() {
        match pattern.get(at) {
            Some('*') => {
                at += 1;
                star = Some((at, seen));
            }
            Some(&c) if c == '?' || c == name[seen] => {
                at += 1;
                seen += 1;
            }
            _ => {
                let Some((behind, end)) = star else { return false };
                star = Some((behind, end + 1));
                (at, seen) = (behind, end + 1);
            }
        }
    }
    pattern[at..].iter().all(|&c| c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name) in [
            ("", ""),
            ("*", ""),
            ("*", "a.b"),
            ("**a**", "a"),
            ("a?c", "abc"),
            ("a?c", "a\u{e9}c"),
            ("*.weight", "a.weight.weight"),
            ("*ab*ab?", "xabyababc"),
            ("a*b*c", "abbbc"),
            ("[a]", "[a]"),
        ] {
            assert!(name_matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("", "a"),
            ("?", ""),
            ("a", "ab"),
            ("b", "ab"),
            ("a?c", "ac"),
            ("*.weight", "a.weights"),
            ("*ab*ab?", "xabyab"),
            ("A", "a"),
            ("[a]", "a"),
        ] {
            assert!(!name_matches(pattern, name), "{pattern} {name}");
        }
        // Not exponential.
        assert!(!name_matches(&format!("{}b", "*a".repeat(50)), &"a".repeat(2000)));
    }

    #[test]
    fn heads_embeddings_and_routers_are_excluded_and_layers_are_not() {
        let options = QuantizeOptions::new(ElementType::I8);
        for name in [
            "lm_head.weight",
            "language_model.lm_head.weight",
            "model.embed_tokens.weight",
            "transformer.wte.weight",
            "wpe.weight",
            "bert.embeddings.word_embeddings.weight",
            "tok_embeddings.weight",
            "token_embd.weight",
            "gpt_neox.embed_in.weight",
            "embed_out.weight",
            "output.weight",
            "shared.weight",
            "cls.predictions.decoder.weight",
            "score.weight",
            "model.layers.3.block_sparse_moe.gate.weight",
            "model.layers.3.mlp.router.weight",
        ] {
            assert!(options.excluded_by(name).is_some(), "{name}");
        }
        for name in [
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.self_attn.o_proj.weight",
            "model.layers.0.mlp.gate_proj.weight",
            "model.layers.0.mlp.experts.7.down_proj.weight",
            "bert.encoder.layer.0.attention.output.dense.weight",
            "layers.0.feed_forward.w1.weight",
            "transformer.h.0.mlp.c_fc.weight",
            "blk.0.ffn_gate.weight",
            "blk.0.attn_output.weight",
        ] {
            assert_eq!(options.excluded_by(name), None, "{name}");
        }
    }
}
