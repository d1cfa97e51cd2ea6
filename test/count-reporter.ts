/** The last line of a test run, for people and scripts alike: "N passed, N failed", and how many were skipped. */
import type { Reporter, TestModule } from 'vitest/node';

export class CountReporter implements Reporter {
  onTestRunEnd(modules: readonly TestModule[], unhandled: readonly unknown[]): void {
    const count = { passed: 0, failed: unhandled.length, skipped: 0, pending: 0 };
    for (const module of modules) {
      let failures = 0;
      for (const test of module.children.allTests()) {
        const { state } = test.result();
        count[state]++;
        if (state === 'failed') failures++;
      }
      // A file that does not load, or a hook that throws, fails without a failing test.
      if (module.state() === 'failed' && failures === 0) count.failed++;
    }
    const skipped = count.skipped > 0 ? `, ${count.skipped} skipped` : '';
    // After the default reporter's summary, which is written in the same turn.
    setImmediate(() =>
      process.stdout.write(`\n${count.passed} passed, ${count.failed + count.pending} failed${skipped}\n`),
    );
  }
}
