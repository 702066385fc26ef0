/* Reading and writing with the shared weights alone. */
#pragma once

#include "tile.h"

namespace INTLM_TARGET {

constexpr int kTileStreams = 24;

static int64_t prepared_size(const Problem& p) { return Model(p).prepared_size; }

static void prepare(const Problem& p, const int8_t* parameters, int8_t* prepared) {
  Model(p).prepare(parameters, prepared, p.threads);
}

/* Writes logits, a product's vectors of outputs, to a row of the vocabulary's width. */
static inline void put_logits(int16_t* row, int vocab, int first, Wide found) {
  if (first + kLanes <= vocab) store(row + first, found);
  else std::memcpy(row + first, &found, (vocab - first) * sizeof(int16_t));
}

/* The number of workers for one tile: each must have enough weights to read between two meetings. */
static int team_size(const Problem& p, const Model& model) {
  return (int)std::min<int64_t>(p.threads, 1 + model.size / (1 << 18));
}

static void infer(const Problem& p, const int8_t* prepared, const uint16_t* tokens, int64_t batch, int64_t length,
                  const int8_t* states, int16_t* logits, int8_t* next) {
  Model model(p);
  model.bind(prepared);
  const int64_t row = (int64_t)p.layers * p.hidden;
  auto read = [&](Tile<None>& tile, Team& team, int64_t first) {
    uint16_t reading[kTileStreams];
    for (int64_t at = 0; at < length; ++at) {
      for (int m = 0; m < tile.members; ++m) reading[m] = tokens[(first + m) * length + at];
      int16_t* const out = logits + (first * length + at) * p.vocab;
      const int64_t width = length * p.vocab;
      const int vocab = p.vocab;
      tile.step(team, reading, [=](int m, int from, Wide found) { put_logits(out + m * width, vocab, from, found); });
    }
  };
  const int parts = team_size(p, model);
  if (batch < parts) {
    Tile<None> tile(p, model, prepared, (int)batch, parts);
    tile.start((int)batch, states);
    intlm::Barrier barrier(parts);
    parallel(parts, parts, [&](int64_t index, int) {
      Team team{(int)index, parts, &barrier};
      read(tile, team, 0);
    });
    tile.finish(next, (int)batch);
    return;
  }
  const int64_t per_thread = (batch + p.threads - 1) / p.threads;
  const int streams = (int)std::min<int64_t>(kTileStreams, per_thread);
  const int64_t tiles = (batch + streams - 1) / streams;
  std::vector<std::unique_ptr<Tile<None>>> own(p.threads);
  parallel(tiles, p.threads, [&](int64_t index, int worker) {
    Team alone;
    if (!own[worker]) own[worker].reset(new Tile<None>(p, model, prepared, streams));
    Tile<None>& tile = *own[worker];
    const int64_t first = index * streams;
    tile.start((int)std::min<int64_t>(streams, batch - first), states + first * row);
    read(tile, alone, first);
    alone.watch.on(intlm::kCopies);
    tile.finish(next + first * row, tile.members);
  });
}

/* Section 10: `count` tokens of one stream, the first drawn from `logits`, replaced by those of the next. */
static void generate(const Problem& p, const int8_t* prepared, const uint32_t* key, uint32_t position, int32_t inverse,
                     int32_t top_k, int64_t count, int16_t* logits, int8_t* states, int32_t* tokens) {
  Model model(p);
  model.bind(prepared);
  const int parts = team_size(p, model);
  Tile<None> tile(p, model, prepared, 1, parts);
  tile.start(1, states);
  intlm::Barrier barrier(parts);
  parallel(parts, parts, [&](int64_t index, int) {
    Team team{(int)index, parts, &barrier};
    uint16_t token = 0;
    for (int64_t i = 0; i < count; ++i) {
      if (team.part == 0) {
        uint32_t word[4] = {position + (uint32_t)i, 0, 0, 0};
        intlm_threefry(key, word);
        tokens[i] = intlm_sample(logits, p.vocab, word[0], inverse, top_k, intlm_exp2);
        token = (uint16_t)tokens[i];
      }
      const int vocab = p.vocab;
      tile.step(team, &token, [=](int, int from, Wide found) { put_logits(logits, vocab, from, found); });
    }
  });
  tile.finish(states, 1);
}

}  // namespace INTLM_TARGET
