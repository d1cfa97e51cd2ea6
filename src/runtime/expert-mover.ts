/** Keeps the experts that tokens choose most often in spare device memory, beside the running steps. */
import type { CudaEngine } from './cuda-addon.ts';
import type { DeviceOptions } from './device-engine.ts';
import { expectNone } from './device-engine.ts';
import { ExpertHistory } from './expert-history.ts';
import { type Move, placementMoves, type Residents } from './expert-placement.ts';

/** Steps between looks at the counts. */
const interval = 64;
/** Moves of one look: 25 MB each over the bus for K2, far less than the steps in between move. */
const movesAtOnce = 16;

export class ExpertMover {
  readonly #engine: CudaEngine;
  readonly #experts: number;
  readonly #residents: readonly Residents[];
  readonly #history: ExpertHistory;
  #steps = 0;
  #moving: Promise<void> | null = null;
  #closed = false;

  /** Fills the slots with the experts that earlier runs have seen most. */
  static async start(engine: CudaEngine, options: DeviceOptions): Promise<ExpertMover> {
    const mover = new ExpertMover(engine, options, await ExpertHistory.open(options));
    await mover.#move(mover.#moves(Number.MAX_SAFE_INTEGER));
    return mover;
  }

  private constructor(engine: CudaEngine, { config, placement }: DeviceOptions, history: ExpertHistory) {
    this.#engine = engine;
    this.#experts = config.experts;
    this.#history = history;
    this.#residents = placement.residentExperts.map((count) => new Int32Array(count).fill(-1));
  }

  /** To be called between steps; what it starts goes on beside the next ones. */
  stepDone(): void {
    if (++this.#steps % interval !== 0 || this.#moving || this.#residents.every(({ length }) => length === 0)) return;
    this.#history.add(this.#engine.expertCounts());
    const moves = this.#moves(movesAtOnce);
    if (moves.length === 0) return;
    // An expert that could not be brought stays where it was: no step needs it on the device.
    this.#moving = this.#move(moves)
      .catch(() => {})
      .finally(() => {
        this.#moving = null;
      });
  }

  /** Waits for moves under way and keeps what has been seen. */
  async close(): Promise<void> {
    this.#closed = true;
    await this.#moving;
    if (this.#steps > 0) this.#history.add(this.#engine.expertCounts());
    await this.#history.save();
  }

  #moves(most: number): Move[] {
    return placementMoves(this.#history.counts, this.#experts, this.#residents, most);
  }

  async #move(moves: readonly Move[]): Promise<void> {
    for (const { layer, expert, slot } of moves) {
      if (this.#closed) return;
      const slots = this.#residents[layer] as Residents;
      slots[slot] = -1;
      expectNone(await this.#engine.placeExpert(layer, expert, slot));
      slots[slot] = expert;
    }
  }
}
