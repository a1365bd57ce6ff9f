"""The scaling laboratory: plan a ladder of runs, train it, fit scaling laws, predict a run that was not fitted, report.

longtake scale plan | run | fit | predict | report | costs
"""
