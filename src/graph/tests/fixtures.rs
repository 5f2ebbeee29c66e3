//! Graphs of the kinds that people bring: what the descriptions, passes and engines are tried on.

use crate::description::element::ElementType::{Bool, F32, I64};
use crate::description::quantization::QuantB;
use crate::error::Result;
use crate::graph::{Array, Attention, Graph, GraphBuilder, Groups, PoolKernel, Value, Window};
use crate::operands::quantize::WeightScheme;
use crate::operands::tensor::Tensor;
use crate::operands::weights::Weights;

/// The sizes of an encoder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Encoder {
    pub batch: usize,
    pub sequence: usize,
    pub width: usize,
    pub heads: usize,
    pub layers: usize,
    pub vocabulary: usize,
}

impl Encoder {
    pub(crate) const SMALL: Self =
        Self { batch: 2, sequence: 7, width: 12, heads: 3, layers: 2, vocabulary: 11 };

    fn embedded(&self, g: &mut GraphBuilder, seed: u64) -> Result<Value> {
        let ids = g.input("ids", I64, &[self.batch, self.sequence])?;
        let words = table(g, "words", self.vocabulary, self.width, seed)?;
        let places = table(g, "places", self.sequence, self.width, seed + 1)?;
        let words = g.named("embedded").gather(words, ids, 0)?;
        let sum = g.add(words, places)?;
        norm(g, "embedding", sum, self.width)
    }

    /// As BERT has it: attention and two layers, each with a residual and a norm behind it; the mean over what the mask
    /// lets through, of length 1.
    pub(crate) fn bert(&self) -> Result<Graph> {
        let Self { batch, sequence, width, heads, layers, .. } = *self;
        let mut g = GraphBuilder::new();
        let mut x = self.embedded(&mut g, 1)?;
        let mask = g.input("mask", I64, &[batch, sequence])?;
        let seen = g.cast(mask, Bool)?;
        let seen = g.unsqueeze(seen, &[1, 2])?;
        for layer in 0..layers {
            let seed = 10 * (layer as u64 + 1);
            let name = |part: &str| format!("layer.{layer}.{part}");
            let projected =
                |g: &mut GraphBuilder, part: &str, seed| linear(g, &name(part), x, width, width, seed);
            let q = projected(&mut g, "query", seed)?;
            let k = projected(&mut g, "key", seed + 1)?;
            let v = projected(&mut g, "value", seed + 2)?;
            let attended = g.named(name("attention")).attention(
                q,
                k,
                v,
                Some(seen),
                Attention::new().heads(heads, heads),
            )?;
            let attended = linear(&mut g, &name("output"), attended, width, width, seed + 3)?;
            let sum = g.add(attended, x)?;
            x = norm(&mut g, &name("attention.norm"), sum, width)?;
            let up = linear(&mut g, &name("up"), x, width, 4 * width, seed + 4)?;
            let up = g.gelu(up)?;
            let down = linear(&mut g, &name("down"), up, 4 * width, width, seed + 5)?;
            let sum = g.add(down, x)?;
            x = norm(&mut g, &name("norm"), sum, width)?;
        }
        let weight = g.cast(mask, F32)?;
        let weight = g.unsqueeze(weight, &[-1])?;
        let masked = g.mul(x, weight)?;
        let (sum, count) = (g.reduce_sum(masked, &[1], false)?, g.reduce_sum(weight, &[1], false)?);
        let mean = g.div(sum, count)?;
        let length = g.reduce_l2(mean, &[-1], true)?;
        let pooled = g.named("pooled").div(mean, length)?;
        g.finish(&[("embedding", pooled), ("hidden", x)])
    }

    /// As exporters to ONNX write the same encoder, without what is pooled: attention, norms and GELU in their parts, a
    /// mask that is added, heads split and merged by `Reshape` and `Transpose`.
    pub(crate) fn exported(&self) -> Result<Graph> {
        let Self { batch, sequence, width, heads, layers, .. } = *self;
        let mut g = GraphBuilder::new();
        let ids = g.input("ids", I64, &[batch, sequence])?;
        let mask = g.input("mask", I64, &[batch, sequence])?;
        let words = table(&mut g, "words", self.vocabulary, width, 1)?;
        let places = table(&mut g, "places", sequence, width, 2)?;
        let words = g.gather(words, ids, 0)?;
        let sum = g.add(words, places)?;
        let mut x = norm_in_parts(&mut g, "embedding", sum, width)?;
        let seen = g.cast(mask, F32)?;
        let seen = g.unsqueeze(seen, &[1, 2])?;
        let one = g.scalar(1f32);
        let hidden = g.sub(one, seen)?;
        let hidden = g.mul_scalar(hidden, -1e4)?;
        let size = width / heads;
        let signed = |dim: usize| i64::try_from(dim).unwrap_or(i64::MAX);
        let split = [signed(batch), -1, signed(heads), signed(size)];
        for layer in 0..layers {
            let seed = 10 * (layer as u64 + 1);
            let name = |part: &str| format!("layer.{layer}.{part}");
            let headed = |g: &mut GraphBuilder, part: &str, perm: &[usize], seed| {
                let projected = linear(g, &name(part), x, width, width, seed)?;
                let split = g.reshape(projected, &split)?;
                g.transpose(split, perm)
            };
            let q = headed(&mut g, "query", &[0, 2, 1, 3], seed)?;
            let k = headed(&mut g, "key", &[0, 2, 3, 1], seed + 1)?;
            let v = headed(&mut g, "value", &[0, 2, 1, 3], seed + 2)?;
            let scores = g.matmul(q, k)?;
            let root = g.scalar((size as f32).sqrt());
            let scores = g.div(scores, root)?;
            let scores = g.add(scores, hidden)?;
            let weights = g.softmax(scores, -1)?;
            let attended = g.matmul(weights, v)?;
            let attended = g.transpose(attended, &[0, 2, 1, 3])?;
            let attended = g.reshape(attended, &[signed(batch), -1, signed(width)])?;
            let attended = linear(&mut g, &name("output"), attended, width, width, seed + 3)?;
            let sum = g.add(attended, x)?;
            x = norm_in_parts(&mut g, &name("attention.norm"), sum, width)?;
            let up = linear(&mut g, &name("up"), x, width, 4 * width, seed + 4)?;
            let up = gelu_in_parts(&mut g, up)?;
            let down = linear(&mut g, &name("down"), up, 4 * width, width, seed + 5)?;
            let sum = g.add(down, x)?;
            x = norm_in_parts(&mut g, &name("norm"), sum, width)?;
        }
        g.finish(&[("hidden", x)])
    }

    /// As Core ML's Neural Engine wants the same encoder: (batch, channels, 1, sequence), convolutions in place of
    /// linear layers, each head by itself, the norm of the channels in its parts; without a mask.
    pub(crate) fn lowered(&self) -> Result<Graph> {
        let Self { batch, sequence, width, heads, layers, .. } = *self;
        let mut g = GraphBuilder::new();
        let x = self.embedded(&mut g, 1)?;
        let x = g.transpose(x, &[0, 2, 1])?;
        let mut x = g.unsqueeze(x, &[2])?;
        let size = width / heads;
        for layer in 0..layers {
            let seed = 10 * (layer as u64 + 1);
            let mut parts = Vec::new();
            for part in 0..3 {
                let projected = pointwise(&mut g, x, width, width, seed + part)?;
                parts.push(g.split(projected, 1, &vec![size; heads])?);
            }
            let mut attended = Vec::new();
            for ((q, k), v) in parts[0].iter().zip(&parts[1]).zip(&parts[2]) {
                // (batch, 1, keys, size) x (batch, 1, size, queries)
                let (k, q) = (g.transpose(*k, &[0, 2, 3, 1])?, g.transpose(*q, &[0, 2, 1, 3])?);
                let scores = g.matmul(k, q)?;
                let scores = g.mul_scalar(scores, 1.0 / (size as f64).sqrt())?;
                let weights = g.softmax(scores, 2)?;
                let v = g.transpose(*v, &[0, 2, 1, 3])?;
                let head = g.matmul(v, weights)?;
                attended.push(g.transpose(head, &[0, 2, 1, 3])?);
            }
            let joined = g.concat(&attended, 1)?;
            let projected = pointwise(&mut g, joined, width, width, seed + 3)?;
            let sum = g.add(projected, x)?;
            x = channel_norm(&mut g, sum, width, seed)?;
            let up = pointwise(&mut g, x, width, 4 * width, seed + 4)?;
            let up = g.gelu(up)?;
            let down = pointwise(&mut g, up, 4 * width, width, seed + 5)?;
            let sum = g.add(down, x)?;
            x = channel_norm(&mut g, sum, width, seed + 1)?;
        }
        let hidden = g.squeeze(x, &[2])?;
        let hidden = g.named("hidden").transpose(hidden, &[0, 2, 1])?;
        assert_eq!(hidden.shape().dims(), [batch, sequence, width]);
        g.finish(&[("hidden", hidden)])
    }
}

/// A small network of depthwise and pointwise convolutions, as EfficientNet-Lite and MobileNet have them.
pub(crate) fn cnn(batch: usize) -> Result<Graph> {
    let mut g = GraphBuilder::new();
    let x = g.input("image", F32, &[batch, 3, 17, 15])?;
    let window = |stride: usize| Window { strides: vec![stride; 2], pads: vec![1; 4], ..Window::default() };
    let block = |g: &mut GraphBuilder, x: Value, inputs: usize, outputs: usize, stride: usize, seed: u64| {
        let depthwise = random(g, &format!("depthwise.{seed}"), &[inputs, 1, 3, 3], 0.3, seed)?;
        let y = g.conv(x, depthwise, None, window(stride), Groups(inputs))?;
        let y = batch_norm(g, y, inputs, seed + 1)?;
        let (zero, six) = (g.scalar(0f32), g.scalar(6f32));
        let y = g.clip(y, Some(zero), Some(six))?;
        let y = pointwise(g, y, inputs, outputs, seed + 2)?;
        if inputs == outputs && stride == 1 { g.add(y, x) } else { Ok(y) }
    };
    let stem = random(&mut g, "stem", &[8, 3, 3, 3], 0.3, 1)?;
    let y = g.conv(x, stem, None, window(2), Groups(1))?;
    let y = g.relu(y)?;
    let y = block(&mut g, y, 8, 8, 1, 10)?;
    let y = block(&mut g, y, 8, 16, 2, 20)?;
    let pooled = PoolKernel { shape: vec![2, 2], ceil_mode: true };
    let y = g.max_pool(y, Window { strides: vec![2; 2], ..Window::default() }, pooled)?;
    let y = g.global_average_pool(y)?;
    let y = g.flatten(y, 1)?;
    let y = linear(&mut g, "classes", y, 16, 5, 30)?;
    let y = g.named("probabilities").softmax(y, -1)?;
    g.finish(&[("probabilities", y)])
}

/// A linear layer between a quantised activation and quantised weights.
pub(crate) fn quantized_linear(rows: usize) -> Result<Graph> {
    let mut g = GraphBuilder::new();
    let x = g.input("x", F32, &[rows, 16])?;
    let (scale, zero_point) = (g.scalar(0.05f32), g.scalar(3u8));
    let q = g.named("quantized").quantize_linear(x, scale, zero_point, 1)?;
    let x = g.dequantize_linear(q, scale, Some(zero_point), 1)?;
    let weights = Tensor::random_normal_f32(16, 9, 0.1, 5)?;
    let scheme = WeightScheme::INT8.with_scheme(QuantB::PerColumn { zero_point: 0 });
    let (weights, _) = Weights::from_tensor(weights).quantize(&scheme)?;
    let y = g.linear("layer", x, &weights, None)?;
    g.finish(&[("y", y)])
}

fn random(g: &mut GraphBuilder, name: &str, dims: &[usize], sigma: f64, seed: u64) -> Result<Value> {
    let data = Tensor::random_normal_f32(1, dims.iter().product(), sigma, seed)?.data().to_vec();
    g.constant(name, Array::new(dims, data)?)
}

fn table(g: &mut GraphBuilder, name: &str, rows: usize, cols: usize, seed: u64) -> Result<Value> {
    g.weights(name, &Weights::from_tensor(Tensor::random_normal_f32(rows, cols, 0.5, seed)?))
}

fn linear(g: &mut GraphBuilder, name: &str, x: Value, k: usize, n: usize, seed: u64) -> Result<Value> {
    // As PyTorch stores them.
    let weights = Weights::from_tensor(Tensor::random_normal_f32(n, k, 0.2, seed)?).transposed()?;
    let bias = random(g, &format!("{name}.bias"), &[n], 0.1, seed + 1000)?;
    g.linear(name, x, &weights, Some(bias))
}

fn pointwise(g: &mut GraphBuilder, x: Value, inputs: usize, outputs: usize, seed: u64) -> Result<Value> {
    let name = format!("pointwise.{}.{seed}", x.shape());
    let w = random(g, &name, &[outputs, inputs, 1, 1], 0.2, seed)?;
    let bias = random(g, &format!("{name}.bias"), &[outputs], 0.1, seed + 1000)?;
    g.conv(x, w, Some(bias), Window::default(), Groups(1))
}

fn norm(g: &mut GraphBuilder, name: &str, x: Value, width: usize) -> Result<Value> {
    let (scale, bias) = scale_and_bias(g, name, &[width])?;
    g.named(name).layer_normalization(x, scale, bias, EPSILON)
}

/// BERT's.
const EPSILON: f32 = 1e-12;

/// The same of every norm.
fn scale_and_bias(g: &mut GraphBuilder, name: &str, dims: &[usize]) -> Result<(Value, Value)> {
    let scale = random(g, &format!("{name}.scale"), dims, 0.1, 2)?;
    let bias = random(g, &format!("{name}.bias"), dims, 0.1, 3)?;
    Ok((g.add_scalar(scale, 1.0)?, bias))
}

/// As PyTorch's exporter writes it.
fn norm_in_parts(g: &mut GraphBuilder, name: &str, x: Value, width: usize) -> Result<Value> {
    let (scale, bias) = scale_and_bias(g, name, &[width])?;
    let mean = g.reduce_mean(x, &[-1], true)?;
    let centred = g.sub(x, mean)?;
    let two = g.scalar(2f32);
    let squared = g.pow(centred, two)?;
    let variance = g.reduce_mean(squared, &[-1], true)?;
    let variance = g.add_scalar(variance, EPSILON.into())?;
    let deviation = g.sqrt(variance)?;
    let normal = g.div(centred, deviation)?;
    let scaled = g.mul(normal, scale)?;
    g.add(scaled, bias)
}

/// As PyTorch's exporter writes it.
fn gelu_in_parts(g: &mut GraphBuilder, x: Value) -> Result<Value> {
    let root = g.scalar(std::f32::consts::SQRT_2);
    let scaled = g.div(x, root)?;
    let erf = g.erf(scaled)?;
    let sum = g.add_scalar(erf, 1.0)?;
    let product = g.mul(x, sum)?;
    g.mul_scalar(product, 0.5)
}

/// Over axis 1, in its parts.
fn channel_norm(g: &mut GraphBuilder, x: Value, width: usize, seed: u64) -> Result<Value> {
    let mean = g.reduce_mean(x, &[1], true)?;
    let centred = g.sub(x, mean)?;
    let squared = g.mul(centred, centred)?;
    let variance = g.reduce_mean(squared, &[1], true)?;
    let variance = g.add_scalar(variance, EPSILON.into())?;
    let deviation = g.sqrt(variance)?;
    let inverse = g.reciprocal(deviation)?;
    let normal = g.mul(centred, inverse)?;
    let (scale, bias) = scale_and_bias(g, &format!("channels.{seed}"), &[1, width, 1, 1])?;
    let scaled = g.mul(normal, scale)?;
    g.add(scaled, bias)
}

fn batch_norm(g: &mut GraphBuilder, x: Value, channels: usize, seed: u64) -> Result<Value> {
    let name = |part: &str| format!("norm.{seed}.{part}");
    let (scale, bias) = (
        random(g, &name("scale"), &[channels], 1.0, seed)?,
        random(g, &name("bias"), &[channels], 0.1, seed)?,
    );
    let mean = random(g, &name("mean"), &[channels], 0.1, seed + 1)?;
    let variance = g.constant(name("variance"), Array::new(&[channels], vec![0.5f32; channels])?)?;
    g.batch_normalization(x, scale, bias, mean, variance, 1e-3)
}
