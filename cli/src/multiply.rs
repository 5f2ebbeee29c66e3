//! `ane-matmul multiply`.

use std::fmt::Display;
use std::io::ErrorKind;
use std::path::Path;

use ane_matmul::npy::{self, NpyTensor};
use ane_matmul::{
    Activation, BackendId, Element, Error, Inputs, Layout, MatMul, Operand, Tensor, TensorView,
};

use crate::args::{MultiplyArgs, OutputType, Precision, backend_id};
use crate::check;
use crate::failure::{Failure, Output};
use crate::output::{STDIN, STDOUT, is_standard, note, print, refuse_terminal, stdin, tell, with_stdout};
use crate::precision::{self, Given};
use crate::whole_file;

/// The f32 operands of a product.
pub(crate) struct Operands {
    pub(crate) product: MatMul,
    a: Tensor<f32>,
    b: Tensor<f32>,
    bias: Option<Tensor<f32>>,
}

impl Operands {
    pub(crate) fn new(product: MatMul, a: Tensor<f32>, b: Tensor<f32>, bias: Option<Tensor<f32>>) -> Self {
        Self { product, a, b, bias }
    }

    /// A matrix stands for every item of the batch.
    fn view<'a>(tensor: &'a Tensor<f32>, layout: &Layout) -> Output<TensorView<'a, f32>> {
        Ok(TensorView::with_layout(tensor.data(), *layout)?)
    }

    pub(crate) fn a(&self) -> Output<TensorView<'_, f32>> {
        Self::view(&self.a, self.product.a())
    }

    pub(crate) fn b(&self) -> Output<TensorView<'_, f32>> {
        Self::view(&self.b, self.product.b())
    }

    pub(crate) fn bias(&self) -> Option<&[f32]> {
        self.bias.as_ref().map(Tensor::data)
    }

    pub(crate) fn inputs(&self) -> Output<Inputs<'_>> {
        let inputs = Inputs::new(self.a()?).b(self.b()?);
        Ok(match self.bias() {
            Some(bias) => inputs.bias(bias),
            None => inputs,
        })
    }
}

pub(crate) fn run(args: &MultiplyArgs) -> Output {
    let backends = crate::backends()?;
    let id = backend_id(&args.backend);
    backends.info(&id)?;
    // Fail before the work, not after it.
    if is_standard(&args.output) {
        refuse_terminal()?
    } else {
        whole_file::check(&args.output)?
    }

    let inputs = [Some(&args.a), Some(&args.b), args.bias.as_ref()];
    if inputs.into_iter().flatten().filter(|path| is_standard(path)).count() > 1 {
        return Err(Failure::new(
            "only one of the inputs can be `-`, standard input; name files for the others",
        ));
    }
    let a = read(&args.a)?;
    let b = read(&args.b)?;
    let bias = args.bias.as_deref().map(read_bias).transpose()?;
    let types = [Some(&a), Some(&b), bias.as_ref()].into_iter().flatten().map(NpyTensor::element_type);
    let (wide, widest) = (args.precision == Precision::F64, OutputType::widest(types));
    let output_type = args.output_type.unwrap_or(if wide { OutputType::F64 } else { widest });
    let batched = a.is_batched() || b.is_batched();
    let product = describe(args, &a, &b, bias.as_ref())?;
    let options = args.threads.options().expected_runs(1);
    if id == BackendId::AUTO {
        crate::note_profile(&backends.explain(&product, &options).profile);
    }
    backends.supports(&id, &product, &options)?;

    if wide {
        let bias = bias.map(NpyTensor::into_f64).transpose()?;
        let compiled = backends.compile(&id, &product, &options)?;
        if let Some(text) = compiled.report().note {
            note(text);
        }
        let (a, b) = (a.into_f64()?, b.into_f64()?);
        let inputs = Inputs::new(TensorView::with_layout(a.data(), *product.a())?)
            .b(TensorView::with_layout(b.data(), *product.b())?);
        let inputs = match &bias {
            Some(bias) => inputs.bias(bias.data()),
            None => inputs,
        };
        let mut c = output(&product, batched)?;
        compiled.run(inputs, &mut c)?;
        if args.check {
            report(args, check::check(&product, &inputs, (&c).into(), "")?)?;
        }
        return write(args, output_type, NpyTensor::F64(c));
    }
    let bias = args.bias.as_ref().zip(bias).map(|(path, bias)| narrow(path, bias)).transpose()?;
    if args.precision != Precision::F32 {
        let given = Given { product: &product, a: &a, b: &b, bias: bias.as_ref() };
        let mut c = output(&product, batched)?;
        report(args, precision::multiply(&given, &backends, &id, &options, &mut c, args.check)?)?;
        return write(args, output_type, NpyTensor::F32(c));
    }
    let operands = Operands::new(product, narrow(&args.a, a)?, narrow(&args.b, b)?, bias);
    let compiled = backends.compile(&id, &operands.product, &options)?;
    let id = compiled.report().backend;
    if let Some(text) = compiled.report().note {
        note(text);
    }
    let mut c = output(&operands.product, batched)?;
    compiled.run(operands.inputs()?, &mut c)?;
    if args.check {
        report(args, check::verify(&backends, &id, &options, &operands, &c)?)?;
    }
    write(args, output_type, NpyTensor::F32(c))
}

fn output<T: Element>(product: &MatMul, batched: bool) -> Output<Tensor<T>> {
    let (batch, m, n) = (product.batch(), product.m(), product.n());
    Ok(if batched { Tensor::zeros_batched(batch, m, n)? } else { Tensor::zeros(m, n)? })
}

fn read(path: &Path) -> Output<NpyTensor> {
    Ok(if is_standard(path) { npy::read_from(stdin()?, STDIN)? } else { npy::read(path)? })
}

fn read_bias(path: &Path) -> Output<NpyTensor> {
    Ok(if is_standard(path) { npy::read_vector_from(stdin()?, STDIN)? } else { npy::read_vector(path)? })
}

/// Prints what is said of the result, beside the result where that takes standard output.
fn report(args: &MultiplyArgs, text: impl Display) -> Output {
    if !is_standard(&args.output) {
        return print(text);
    }
    text.to_string().lines().for_each(tell);
    Ok(())
}

/// Writes the result in the type asked for.
fn write(args: &MultiplyArgs, output_type: OutputType, c: NpyTensor) -> Output {
    let written = match output_type {
        OutputType::F32 => {
            let c = narrow(Path::new("the result"), c)?;
            if !is_standard(&args.output) {
                return Ok(npy::write(&args.output, &c)?);
            }
            with_stdout(|out| npy::write_to(out, STDOUT, &c))
        }
        OutputType::F64 => {
            let c = c.into_f64()?;
            if !is_standard(&args.output) {
                return Ok(npy::write(&args.output, &c)?);
            }
            with_stdout(|out| npy::write_to(out, STDOUT, &c))
        }
    };
    match written {
        // Whoever reads it has seen enough.
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

/// Describes the product of the files, or says which shapes do not fit.
fn describe(args: &MultiplyArgs, a: &NpyTensor, b: &NpyTensor, bias: Option<&NpyTensor>) -> Output<MatMul> {
    let (a_view, b_view) = (a.view(), b.view());
    let (la, lb) = (a_view.layout(), b_view.layout());
    let (m, k) = if args.transpose_a { (la.cols(), la.rows()) } else { (la.rows(), la.cols()) };
    let (k_of_b, n) = if args.transpose_b { (lb.cols(), lb.rows()) } else { (lb.rows(), lb.cols()) };
    if k != k_of_b {
        return Err(Failure::new(format!(
            "shapes do not fit: {}{} is {m}x{k} and {}{} is {k_of_b}x{n}; the columns of the first must equal the rows of the second (see --transpose-a and --transpose-b)",
            args.a.display(),
            if args.transpose_a { " transposed" } else { "" },
            args.b.display(),
            if args.transpose_b { " transposed" } else { "" },
        )));
    }
    // As NumPy has it: one matrix, in a batch or not, stands for every item of the other batch.
    let batch = if la.batch() == 1 { lb.batch() } else { la.batch() };
    if ![1, batch].contains(&lb.batch()) {
        return Err(Failure::new(format!(
            "shapes do not fit: {} holds {} matrices and {} holds {}; batches must be of the same size, or of one matrix",
            args.a.display(),
            la.batch(),
            args.b.display(),
            lb.batch()
        )));
    }
    if let Some(bias) = bias {
        let length = bias.view().layout().cols();
        if length != n {
            return Err(Failure::new(format!(
                "bias: expected {n} elements (the columns of the result), got {length}"
            )));
        }
    }
    let (types, quantization) = args.precision.of_floats();
    let mut builder = MatMul::builder(m, n, k)
        .batch(batch)
        .transpose_a(args.transpose_a)
        .transpose_b(args.transpose_b)
        .bias(bias.is_some())
        .activation(args.activation.parse::<Activation>().map_err(Failure::new)?)
        .types(types)
        .quantization(quantization);
    if la.batch() == 1 {
        builder = builder.batch_stride(Operand::A, 0);
    }
    if lb.batch() == 1 {
        builder = builder.batch_stride(Operand::B, 0);
    }
    // Weights are quantised once a backend is known to take them.
    crate::describe(builder, args.precision == Precision::Int8)
}

/// Rounds to f32, and says so when numbers are lost.
fn narrow(path: &Path, tensor: NpyTensor) -> Output<Tensor<f32>> {
    match tensor {
        NpyTensor::F32(tensor) => Ok(tensor),
        NpyTensor::F64(wide) => {
            let tensor = wide.to_f32()?;
            let lost = |is_lost: fn(f64, f32) -> bool, became: &str| {
                let pairs = wide.data().iter().zip(tensor.data());
                let lost = pairs.filter(|(wide, x)| is_lost(**wide, **x)).count();
                if lost > 0 {
                    note(format_args!(
                        "{}: {lost} elements beyond f32's range became {became}",
                        path.display()
                    ));
                }
            };
            lost(|wide, x| wide.is_finite() && x.is_infinite(), "infinity");
            lost(|wide, x| wide != 0.0 && x == 0.0, "0");
            Ok(tensor)
        }
        _ => Err(Failure::new(format!("{}: unexpected element type", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    #[test]
    fn a_matrix_multiplies_every_item_of_a_batch() {
        let cli = Cli::parse_from("ane-matmul multiply a.npy b.npy --output c.npy".split(' '));
        let Command::Multiply(args) = cli.command else { panic!("not that command") };
        let matrix = || NpyTensor::F32(Tensor::filled(2, 2, 1.0).unwrap());
        let batch = |items| NpyTensor::F32(Tensor::zeros_batched(items, 2, 2).unwrap());
        let strides = |a: &NpyTensor, b: &NpyTensor| {
            let product = describe(&args, a, b, None).unwrap();
            (product.batch(), product.a().batch_stride(), product.b().batch_stride())
        };
        assert_eq!(strides(&batch(3), &batch(3)), (3, 4, 4));
        assert_eq!(strides(&matrix(), &batch(3)), (3, 0, 4));
        assert_eq!(strides(&batch(3), &matrix()), (3, 4, 0));
        assert!(describe(&args, &batch(3), &batch(2), None).is_err());
    }
}
