#pragma once

#include <optional>
#include <tuple>

#include <torch/csrc/stable/tensor.h>

using torch::stable::Tensor;

std::tuple<Tensor, Tensor> ssm_scan(
    Tensor inputs, Tensor transition, Tensor b, Tensor c, std::optional<Tensor> skip, Tensor state, bool gelu);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> ssm_scan_backward(
    Tensor of_outputs, Tensor of_last, Tensor inputs, Tensor transition, Tensor b, Tensor c, std::optional<Tensor> skip,
    Tensor state);

void ssm_step_(
    const Tensor& outputs, const Tensor& state, const Tensor& inputs, const Tensor& increment,
    const std::optional<Tensor>& tail, const Tensor& b, const Tensor& c, const std::optional<Tensor>& skip,
    const std::optional<Tensor>& left, const std::optional<Tensor>& right);

Tensor cauchy(Tensor inputs, Tensor outputs, Tensor poles, int64_t length, bool single);

std::tuple<Tensor, Tensor, Tensor> cauchy_backward(
    Tensor gradient, Tensor inputs, Tensor outputs, Tensor poles, int64_t length);

Tensor vandermonde(Tensor coefficients, Tensor base, int64_t length, bool single);

std::tuple<Tensor, Tensor> vandermonde_backward(Tensor gradient, Tensor coefficients, Tensor base);
